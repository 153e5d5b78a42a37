"""Task `calculator`: its problems as typed, and its machine."""

FLAG = "--digits"  # 3,4,5 asks for a*b+c; 3,4,5,6 for a*b+c-d; 3,4,5,6,7 for a*b+c-d*e
OPERATIONS = {"MUL": int.__mul__, "ADD": int.__add__, "SUB": int.__sub__}


def read(text, card):
    """The context's tokens and the stage of a problem."""
    digits = [part.strip() for part in text.split(",")]
    if len(digits) not in (3, 4, 5) or any(part not in set("0123456789") for part in digits):
        raise ValueError(f"{FLAG}: expected 3, 4 or 5 digits, such as 3,4,5,6,7")
    return [*digits, "CTX"], len(digits) - 3


def answer(context, stage, program):
    """The answer of a program; None if it has none."""
    acc, mem, latch, digits = None, None, None, [int(name) for name in context[:-1]]
    for token in program:
        if token == "ANS":
            return acc
        if token == "STO" and acc is not None:
            acc, mem = None, acc
        elif token == "RCL" and mem is not None:
            acc, mem, latch = mem, None, latch if acc is None else acc
        elif token == "MUL" and acc is None and len(digits) > 1:
            acc = digits.pop(0) * digits.pop(0)
        elif token in OPERATIONS and acc is not None and (latch is not None or digits):
            operand = digits.pop(0) if latch is None else latch
            acc, latch = OPERATIONS[token](acc, operand), None
