"""Task `tutorial`: its problems as typed, and its machine."""

FLAG = "--digits"  # 3,4,5 asks for a*b+c; 3,4,5,6 for a*b+c-d; 3,4,5,6,7 for a*b+c-d*e


def read(text, card):
    """The context's tokens and the stage of a problem."""
    digits = [part.strip() for part in text.split(",")]
    if len(digits) not in (3, 4, 5) or any(part not in set("0123456789") for part in digits):
        raise ValueError(f"{FLAG}: expected 3, 4 or 5 digits, such as 3,4,5,6,7")
    return [*digits, "CTX"], len(digits) - 3


def answer(context, stage, program):
    """What a program answers with; None if with nothing."""
    a, b, c, d, e = [*map(int, context[:-1]), 0, 0][:5]
    last, mem = None, False
    for token in program:
        if token == "ANS":
            return last
        if token == "STO":
            mem = True
        elif token == "RCL" and mem:
            last = d * e if stage == 2 else last or 0
        elif token == "MUL":
            last = a * b if last is None else last * (d if stage > 0 else 1)
        elif token == "ADD" and last is not None:
            last += c
        elif token == "SUB" and last is not None and stage > 0:
            last -= e if stage == 2 and mem else d
