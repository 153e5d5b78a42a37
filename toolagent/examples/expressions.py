"""Writes a file of random expressions, drawn otherwise than the task `expression` draws its own.

    python -m toolagent.examples.expressions --trees deep --operands 16 > deep.csv
    python -m toolagent.evaluate runs/my-run --problems deep.csv

Operators and digits are drawn evenly. Of the trees,

- `uniform`: each is equally likely;
- `split`: at each node, how many operands are on its left is drawn evenly, so they are flatter;
- `deep`: one side of each node is a single operand, the left or the right one with equal chance;
- `nested`: that side is always the left one, and all parentheses are written, so that k operands
  are k-2 pairs deep.
"""

import argparse
import math
import random
from collections.abc import Callable

Tree = int | tuple[str, "Tree", "Tree"]  # a digit, or an operator with its two sides
_TIGHTNESS = {"+": 1, "-": 1, "*": 2}


def trees_with(operands: int) -> int:
    """How many trees there are: a Catalan number."""
    return math.comb(2 * operands - 2, operands - 1) // operands


def uniform(rng: random.Random, operands: int) -> int:
    """How many operands are on the left of a node."""
    lefts = range(1, operands)
    return rng.choices(lefts, [trees_with(left) * trees_with(operands - left) for left in lefts])[0]


def split(rng: random.Random, operands: int) -> int:
    """As `uniform`."""
    return rng.randint(1, operands - 1)


def deep(rng: random.Random, operands: int) -> int:
    """As `uniform`."""
    return rng.choice([1, operands - 1])


def nested(rng: random.Random, operands: int) -> int:
    """As `uniform`."""
    return 1


KINDS: dict[str, Callable[[random.Random, int], int]] = {
    kind.__name__: kind for kind in (uniform, split, deep, nested)
}


def drawn(rng: random.Random, operands: int, kind: str) -> Tree:
    """A random tree of that kind, with its operators and digits."""
    if operands == 1:
        return rng.randint(0, 9)
    left = KINDS[kind](rng, operands)
    return rng.choice("+-*"), drawn(rng, left, kind), drawn(rng, operands - left, kind)


def text_of(tree: Tree, all_written: bool = False, outside: int = 0) -> str:
    """The expression, with the parentheses that it needs; with `all_written`, round each node
    below the first.

    Args:
        tree: of the expression.
        all_written: whether parentheses are written that change nothing.
        outside: a node that is less tight needs parentheses.
    """
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    tightness = _TIGHTNESS[operator]
    within = 3 if all_written else tightness
    text = text_of(left, all_written, within) + operator
    text += text_of(right, all_written, max(within, tightness + 1))
    return f"({text})" if tightness < outside else text


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What is on the command line, or in `words`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trees", choices=[*KINDS], default="uniform")
    parser.add_argument("--operands", type=int, default=16, help="of each expression")
    parser.add_argument("--count", type=int, default=1000, help="of expressions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    if given.operands < 1 or given.count < 1:
        parser.error("--operands and --count must be at least 1")
    return given


def main() -> None:
    """Prints the file."""
    given = arguments()
    rng = random.Random(given.seed)
    print("expression")
    for _ in range(given.count):
        tree = drawn(rng, given.operands, given.trees)
        print(text_of(tree, all_written=given.trees == "nested"))


if __name__ == "__main__":
    main()
