"""Problems of the task `expression`: drawn, composed from their parts, or read from texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolagent.tasks.base import Problems
from toolagent.tasks.infix import CLOSE, OPEN, parse
from toolagent.tasks.skeletons import (
    HELD_OUT_FROM,
    MOST_NUMBERED,
    NO_NUMBER,
    OPERATORS,
    Shapes,
    held_out,
    needs_parentheses,
    number_of,
    numbers,
    random_shapes,
    shapes,
    split_number,
)
from toolagent.tasks.tokens import ADD, CTX, EOS, MUL, SUB

MOST_OPERANDS = 16  # of any task
FROM_0 = np.zeros(MOST_OPERANDS + 1, np.int64)  # the smallest digit, by the number of operands
# Of the problems drawn, this share may have parentheses that change nothing; each possible pair
# is then written or not with equal chance.
SPARE_PARENTHESES_SHARE = 0.2
# Of the problems that are rewritten, and of their digits.
REWRITTEN_SHARE = 0.5
DIGITS_IN_PARENTHESES = 0.4


def most_tokens(operands: int) -> int:
    """Of an expression: k digits, k-1 operators, 2(k-1) parentheses."""
    return 4 * operands - 3


def longest_context(operands: int) -> int:
    """Of a task with expressions of up to so many operands: `CTX` stands behind them."""
    return most_tokens(operands) + 1


@dataclass
class ExpressionProblems(Problems):
    """B problems; `stage` is the number of operands."""

    target: np.ndarray  # (B,) int64
    skeleton: np.ndarray  # (B,) int32: its number; `NO_NUMBER` beyond `MOST_NUMBERED` operands
    held_out: np.ndarray  # (B,) bool: the skeleton never occurs in training


def draw(
    rng: np.random.Generator,
    stage: np.ndarray,
    length: int,
    from_held_out: bool = False,
    smallest: np.ndarray = FROM_0,
) -> ExpressionProblems:
    """A problem for each of (B,) stages, of skeletons that are held out or of the others.

    Skeletons are equally likely, so trees and operators are too, and so are the digits: from
    `smallest[k]` to 9 for k operands. With more than `MOST_NUMBERED` operands none is held out.

    Args:
        rng: draws them.
        stage: (B,) numbers of operands.
        length: of a context.
        from_held_out: whether the skeletons are those that never occur in training.
        smallest: digit, by the number of operands.

    Raises:
        ValueError: no skeleton of a stage is held out.
    """
    problems = _blank(len(stage), length)
    for operands in np.unique(stage).tolist():
        if from_held_out and not HELD_OUT_FROM <= operands <= MOST_NUMBERED:
            raise ValueError(
                f"no problems of stage {operands} are held out; those of {HELD_OUT_FROM} to "
                f"{MOST_NUMBERED} operands are"
            )
        rows = np.flatnonzero(stage == operands)
        if operands > MOST_NUMBERED:
            table, shape = random_shapes(rng, len(rows), operands), np.arange(len(rows))
            operators = rng.integers(0, 3, (len(rows), operands - 1), dtype=np.int8)
            number = np.full(len(rows), NO_NUMBER)
        else:
            known = numbers(operands, from_held_out)
            number = known[rng.integers(0, len(known), len(rows))]
            table = shapes(operands)
            shape, operators = split_number(operands, number)
        digits = rng.integers(smallest[operands], 10, (len(rows), operands), dtype=np.int8)
        spare = rng.random((len(rows), operands - 1)) < 0.5
        spare &= rng.random((len(rows), 1)) < SPARE_PARENTHESES_SHARE
        some = _composed(length, table, shape, operators, digits, spare)
        some.skeleton[:] = number
        if operands <= MOST_NUMBERED:
            some.held_out[:] = held_out(operands)[number]
        problems.put(rows, some)
    return problems


def compose(
    operands: int, number: np.ndarray, digits: np.ndarray, spare: np.ndarray, length: int
) -> ExpressionProblems:
    """Problems from their parts, all with the same number of operands.

    Args:
        operands: k, at most `MOST_NUMBERED`.
        number: (B,) skeletons.
        digits: (B, k) int8.
        spare: (B, k-1) bool: write this node's parentheses even where they change nothing.
        length: of a context.
    """
    shape, operators = split_number(operands, number)
    problems = _composed(length, shapes(operands), shape, operators, digits, spare)
    problems.skeleton[:] = number
    problems.held_out[:] = held_out(operands)[number]
    return problems


def _composed(
    length: int,
    table: Shapes,
    shape: np.ndarray,
    operators: np.ndarray,
    digits: np.ndarray,
    spare: np.ndarray,
) -> ExpressionProblems:
    """Problems without the numbers of their skeletons."""
    operands = digits.shape[1]
    written = (needs_parentheses(table, shape, operators) | spare)[:, :, None]  # (B, k-1, 1)
    operand = np.arange(operands, dtype=np.int8)
    opens = (written & (table.first[shape][:, :, None] == operand)).sum(1, dtype=np.int8)  # (B, k)
    closes = (written & (table.last[shape][:, :, None] == operand)).sum(1, dtype=np.int8)
    # An operand takes its opens, its digit, its closes and what is behind it: operator or CTX.
    behind = np.cumsum(opens + closes + np.int8(2), axis=1, dtype=np.int8) - np.int8(1)
    digit_at = behind - closes - np.int8(1)

    problems = _blank(len(shape), length)
    context, rows = problems.context, np.arange(len(shape))[:, None]
    # What lies between a digit and what is behind it is a CLOSE, all else an OPEN.
    edges = np.zeros_like(context)
    edges[rows, digit_at] = 1
    edges[rows, behind] = -1
    inside = np.cumsum(edges, axis=1, dtype=np.int8) > 0
    np.copyto(context, OPEN, where=np.arange(context.shape[1]) < behind[:, -1:])
    np.copyto(context, CLOSE, where=inside)
    context[rows, digit_at] = digits
    context[rows, behind[:, :-1]] = OPERATORS[operators]
    context[rows, behind[:, -1:]] = CTX
    problems.stage[:] = operands
    problems.target[:] = _values(table, shape, operators, digits)
    return problems


def with_other_digits(
    problems: ExpressionProblems, rng: np.random.Generator, smallest: np.ndarray = FROM_0
) -> ExpressionProblems:
    """The same expressions, parentheses and all, with fresh digits (see `draw`)."""
    others = problems.take(np.arange(len(problems)))
    at = others.context < 10
    least = np.broadcast_to(smallest[others.stage][:, None], at.shape)[at]
    others.context[at] = rng.integers(least, 10, dtype=np.int8)
    for operands in np.unique(others.stage).tolist():
        rows = np.flatnonzero(others.stage == operands)
        digits = others.context[rows][at[rows]].reshape(len(rows), operands)
        if operands > MOST_NUMBERED:
            table, operators = _read_shapes(others.context[rows], operands)
            shape = np.arange(len(rows))
        else:
            shape, operators = split_number(operands, others.skeleton[rows])
            table = shapes(operands)
        others.target[rows] = _values(table, shape, operators, digits)
    return others


def with_digits_in_parentheses(
    problems: ExpressionProblems, rng: np.random.Generator
) -> ExpressionProblems:
    """The same expressions, of some of which some digits stand in parentheses of their own.

    Where a context has no room for them it stays as it is.
    """
    context = problems.context
    length = context.shape[1]
    put = (context < 10) & (rng.random(context.shape) < DIGITS_IN_PARENTHESES)
    put &= rng.random((len(context), 1)) < REWRITTEN_SHARE
    put &= ((context != EOS).sum(1) + 2 * put.sum(1) <= length)[:, None]
    # Where each token comes to stand: two places on for each pair before it, one for its own.
    to = np.arange(length) + 2 * np.cumsum(put, 1) - put
    others = problems.take(np.arange(len(problems)))
    row, at = np.nonzero(context != EOS)
    others.context[:] = EOS
    others.context[row, to[row, at]] = context[row, at]
    row, at = np.nonzero(put)
    others.context[row, to[row, at] - 1] = OPEN
    others.context[row, to[row, at] + 1] = CLOSE
    return others


def _read_shapes(context: np.ndarray, operands: int) -> tuple[Shapes, np.ndarray]:
    """The shapes of (B, L) contexts and their operators' numbers, (B, k-1), all with k operands.

    Of the shapes only what `_values` needs. An operator is the tighter the more parentheses are
    round it, and `*` than `+` and `-`; of equals the left one is applied first. So it spans what
    lies between the next looser ones.
    """
    is_operator = np.isin(context, OPERATORS)
    depth = np.cumsum((context == OPEN).astype(np.int8) - (context == CLOSE), 1)
    tokens = context[is_operator].reshape(len(context), operands - 1)
    tightness = 2 * depth[is_operator].reshape(tokens.shape) + (tokens == MUL)
    node = np.arange(operands - 1)
    # [:, i, j]: operator i is on the left (right) of j and applied after it.
    looser = (tightness[:, :, None] < tightness[:, None, :]) & (node[:, None] < node)
    later = (tightness[:, :, None] <= tightness[:, None, :]) & (node[:, None] > node)
    first = np.where(looser, node[:, None] + 1, 0).max(1)
    last = np.where(later, node[:, None], operands - 1).min(1)
    order = np.argsort(-tightness, 1, kind="stable")
    nothing = np.zeros_like(first)
    table = Shapes(first, last, nothing, nothing.astype(bool), order)
    return table, np.select([tokens == MUL, tokens == ADD, tokens == SUB], [0, 1, 2])


def _values(
    table: Shapes, shape: np.ndarray, operators: np.ndarray, digits: np.ndarray
) -> np.ndarray:
    """(B,) int64: the nodes in postfix order, each replacing the operands that it spans."""
    operands, row = digits.shape[1], np.arange(len(shape))[:, None]
    nodes = table.postfix[shape]  # (B, k-1)
    # Flat indices into `value`, whose [:, i] is the largest node so far that begins at operand i.
    lefts, rights = row * operands + table.first[shape[:, None], nodes], row * operands + nodes + 1
    times, sign = operators[row, nodes] == 0, np.where(operators[row, nodes] == 1, 1, -1)
    value = digits.astype(np.int64).reshape(-1)
    for rank in range(operands - 1):
        left, right = value[lefts[:, rank]], value[rights[:, rank]]
        value[lefts[:, rank]] = np.where(times[:, rank], left * right, left + sign[:, rank] * right)
    return value[::operands]


def read(texts: Sequence[str], operands: int) -> ExpressionProblems:
    """The problems that texts pose, of up to so many operands.

    Raises:
        ValueError: a text is no expression, or a longer one than is read.
    """
    problems = _blank(len(texts), longest_context(operands))
    for row, text in enumerate(texts):
        expression = parse(text, operands, most_tokens(operands))
        end = len(expression.tokens)
        problems.context[row, :end] = expression.tokens
        problems.context[row, end] = CTX
        problems.stage[row] = expression.operands
        problems.target[row] = expression.value
        number = number_of(expression.operators, expression.spans)
        problems.skeleton[row] = number
        if number != NO_NUMBER:
            problems.held_out[row] = held_out(expression.operands)[number]
    return problems


def _blank(size: int, length: int) -> ExpressionProblems:
    return ExpressionProblems(
        stage=np.zeros(size, np.int8),
        context=np.full((size, length), EOS, np.int8),
        target=np.zeros(size, np.int64),
        skeleton=np.zeros(size, np.int32),
        held_out=np.zeros(size, bool),
    )
