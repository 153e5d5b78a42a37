"""Task `expression`: its problems as typed, and its machine."""

import re

FLAG = "--expression"  # digits with + - * and parentheses, as many as the card says
OPERATIONS = {"MUL": int.__mul__, "ADD": int.__add__, "SUB": int.__sub__}


def read(text, card):
    """The context's tokens and the stage, the number of operands, of a problem."""
    text = text.replace(" ", "")
    rest, flat = text, r"[0-9]([-+*][0-9])*"
    most, length = max(map(int, card["action_limits"])), card["context_length"] - 1
    for _ in text[:length]:  # what stands in parentheses is an operand
        rest = re.sub(rf"\({flat}\)", "0", rest)
    operands = len(re.findall("[0-9]", text))
    if not re.fullmatch(flat, rest) or operands > most or len(text) > length:
        right = f"up to {most} single digits with + - * ( ), as in (3+4)*2"
        raise ValueError(f"{FLAG}: expected {right}")
    return [*map({"*": "MUL", "+": "ADD", "-": "SUB"}.get, text, text), "CTX"], operands


def answer(context, stage, program):
    """The answer of a program; None if it has none."""
    stack, mem = [], None
    for token in program:
        if token == "ANS":
            return stack[-1] if stack else None
        if token.isdigit() and len(stack) < 16:
            stack.append(int(token))
        elif token in OPERATIONS and len(stack) > 1:
            stack[-2:] = [OPERATIONS[token](*stack[-2:])]
        elif token == "STO" and stack:
            mem = stack.pop()
        elif token == "RCL" and mem is not None and len(stack) < 16:
            stack, mem = [*stack, mem], None
