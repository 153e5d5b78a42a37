"""Writes expression_rewards.csv: 3,000 episodes of the scalar machine in `reference_machines`.

`python tests/golden/make_expression_rewards.py`. It knows nothing of the package: expressions are
put together here, valued by Python, and played by the machine of lists. The file is checked in, so
that a change of the rules is a change of the file.
"""

import ast
import csv
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference_machines import ADD, ANS, MUL, RCL, STO, SUB, StackReference, operands_of, tree_of

ROWS = 3000
OPERATORS = {ast.Add: ADD, ast.Sub: SUB, ast.Mult: MUL}


def expression(rng: random.Random) -> str:
    """1 to 8 operands, with parentheses wherever they may stand."""
    pieces = [str(rng.randrange(10)) for _ in range(rng.randint(1, 8))]
    while len(pieces) > 1:
        at = rng.randrange(len(pieces) - 1)
        text = f"{pieces[at]}{rng.choice('+-*')}{pieces[at + 1]}"
        pieces[at : at + 2] = [f"({text})" if rng.random() < 0.4 else text]
    return pieces[0]


def postfix(node: ast.expr) -> list[int]:
    if isinstance(node, ast.BinOp):
        return [*postfix(node.left), *postfix(node.right), OPERATORS[type(node.op)]]
    assert isinstance(node, ast.Constant)
    return [int(str(node.value))]


def program(rng: random.Random, text: str) -> list[int]:
    """Half of them right, or nearly right; the others random. Some go on behind their end."""
    kind = rng.random()
    digits = [*operands_of(text), *range(10)]
    tools = [MUL, ADD, SUB] * 5 + [STO, RCL] * 2 + [10, 17]
    if kind < 0.6:
        tokens = [*postfix(tree_of(text)), ANS]
        if kind < 0.45:
            for _ in range(rng.randint(1, 2)):  # a token more, less or another
                at = rng.randrange(len(tokens))
                tokens[at : at + rng.randrange(2)] = rng.choice([[], [rng.choice(tools + digits)]])
        if kind < 0.1:  # over mem
            at = rng.randrange(len(tokens) + 1)
            tokens[at:at] = [STO, RCL]
    else:
        share = 0.5 if kind < 0.95 else 0.97  # of digits; the last fill the stack
        tokens = [rng.choice(digits if rng.random() < share else tools) for _ in range(17)]
        if rng.random() < 0.7:
            tokens[rng.randrange(17)] = ANS
    return tokens or [ANS]


def play(text: str, tokens: list[int]) -> list:
    """One row of the file."""
    machine, reward, solved = StackReference(text), 0.0, False
    for token in tokens:
        reward, terminated, truncated, solved = machine.step(token)
        if terminated or truncated:
            break
    top = "" if machine.acc is None else machine.acc
    return [text, " ".join(map(str, tokens)), reward, machine.steps, top, int(solved)]


def main() -> None:
    """Writes the file."""
    rng = random.Random(2025)
    with open(Path(__file__).with_name("expression_rewards.csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["expression", "actions", "reward", "steps", "top", "solved"])
        for _ in range(ROWS):
            text = expression(rng)
            writer.writerow(play(text, program(rng, text)))


if __name__ == "__main__":
    main()
