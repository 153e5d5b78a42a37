"""The shortest way to finish a program of task `expression` that is already under way.

Within an episode's limit, 2k+1 actions for k operands, at most one token can be wasted: k pushes,
k-1 operations and `ANS` are needed. So mem is of no use (a value put there and fetched again costs
two), and of a stack at most one entry at the bottom can be left over.
"""

from __future__ import annotations

from collections import Counter

from toolagent.tasks.algebra import Polynomial, blocks, join, normal_form, unsigned
from toolagent.tasks.tokens import ADD, ANS, MUL, RCL, STO, SUB

Formula = tuple[int, ...]  # in postfix
_OPERATORS = (MUL, ADD, SUB)
_MOST_OPERANDS = 8  # of a search: with more, polynomials have too many parts to be listed
_MOST_STATES = 20_000  # of a search; seldom more than a few dozen are looked at


def complete(expression: Formula, tokens: tuple[int, ...], limit: int) -> tuple[int, ...] | None:
    """The rest of the shortest algebraically valid program that begins with `tokens`.

    Args:
        expression: in postfix.
        tokens: written already.
        limit: on all tokens together.

    Returns:
        The tokens to come, with `ANS`; None if there is no such program (or, where the search has
        to give up, none was found).
    """
    plan = (*expression, ANS)
    if plan[: len(tokens)] == tokens:
        return plan[len(tokens) :]
    operands = Counter(token for token in expression if token < 10)
    if operands.total() > _MOST_OPERANDS:
        return None
    target = normal_form(expression)
    stack = _stack(tokens)
    for first in range(len(stack) + 1):  # what lies below is left over
        used = stack[first:]
        missing = operands.copy()
        missing.subtract(token for formula in used for token in formula if token < 10)
        pushes = sum(missing.values())
        length = pushes + max(pushes + len(used) - 1, 0) + 1
        if min(missing.values()) < 0 or len(tokens) + length > limit:
            continue
        search = _Search(target)
        found = search.run(tuple(normal_form(formula) for formula in used), missing)
        if found is not None:
            return (*found, ANS)
    return None


class _Search:
    """Depth first, over stacks of polynomials that are blocks of the target."""

    def __init__(self, target: Polynomial):
        self.target, self.blocks = target, blocks(target)
        self.hopeless: set[tuple] = set()

    def run(self, stack: tuple[Polynomial, ...], missing: Counter[int]) -> list[int] | None:
        """The tokens that make the target of a stack and the missing operands."""
        if any(unsigned(entry) not in self.blocks for entry in stack):
            return None
        left = [digit for digit in sorted(missing) if missing[digit]]
        if not left and len(stack) == 1:
            return [] if stack[0] == self.target else None
        state = (stack, tuple((digit, missing[digit]) for digit in left))
        if state in self.hopeless or len(self.hopeless) > _MOST_STATES:
            return None
        if len(stack) > 1:
            for operator in _OPERATORS:
                rest = self.run((*stack[:-2], join(operator, *stack[-2:])), missing)
                if rest is not None:
                    return [operator, *rest]
        for digit in left:
            after = missing.copy()
            after[digit] -= 1
            rest = self.run((*stack, normal_form((digit,))), after)
            if rest is not None:
                return [digit, *rest]
        self.hopeless.add(state)
        return None


def _stack(tokens: tuple[int, ...]) -> list[Formula]:
    """What the machine has on its stack, as formulas; it never is full within an episode."""
    stack: list[Formula] = []
    mem: Formula | None = None
    for token in tokens:
        if token < 10:
            stack.append((token,))
        elif token in _OPERATORS and len(stack) > 1:
            top, below = stack.pop(), stack.pop()
            stack.append((*below, *top, token))
        elif token == STO and stack:
            mem = stack.pop()
        elif token == RCL and mem is not None:
            stack, mem = [*stack, mem], None
    return stack
