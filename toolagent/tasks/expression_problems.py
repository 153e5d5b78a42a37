"""Problems of the task `expression`: drawn, composed from their parts, or read from texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolagent.tasks.base import Problems
from toolagent.tasks.infix import CLOSE, OPEN, parse
from toolagent.tasks.skeletons import (
    HELD_OUT_FROM,
    OPERATORS,
    held_out,
    needs_parentheses,
    number_of,
    numbers,
    shapes,
    split_number,
)
from toolagent.tasks.tokens import CTX, EOS

MAX_OPERANDS = 8
MAX_TOKENS = 4 * MAX_OPERANDS - 3  # k digits, k-1 operators, 2(k-1) parentheses
CONTEXT_LENGTH = MAX_TOKENS + 1  # CTX behind them
FROM_0 = np.zeros(MAX_OPERANDS + 1, np.int64)  # the smallest digit, by the number of operands
# Of the problems drawn, this share may have parentheses that change nothing; each possible pair
# is then written or not with equal chance.
SPARE_PARENTHESES_SHARE = 0.2


@dataclass
class ExpressionProblems(Problems):
    """B problems; `stage` is the number of operands."""

    target: np.ndarray  # (B,) int64
    skeleton: np.ndarray  # (B,) int32: its number
    held_out: np.ndarray  # (B,) bool: the skeleton never occurs in training


def draw(
    rng: np.random.Generator,
    stage: np.ndarray,
    from_held_out: bool = False,
    smallest: np.ndarray = FROM_0,
) -> ExpressionProblems:
    """A problem for each of (B,) stages, of skeletons that are held out or of the others.

    Skeletons are equally likely, and so are the digits: from `smallest[k]` to 9 for k operands.

    Raises:
        ValueError: no skeleton of a stage is held out.
    """
    problems = _blank(len(stage))
    for operands in np.unique(stage).tolist():
        if from_held_out and operands < HELD_OUT_FROM:
            raise ValueError(
                f"no problems of stage {operands} are held out; only from {HELD_OUT_FROM} operands "
                "on there are enough skeletons for that"
            )
        rows = np.flatnonzero(stage == operands)
        known = numbers(operands, from_held_out)
        number = known[rng.integers(0, len(known), len(rows))]
        digits = rng.integers(smallest[operands], 10, (len(rows), operands), dtype=np.int8)
        spare = rng.random((len(rows), operands - 1)) < 0.5
        spare &= rng.random((len(rows), 1)) < SPARE_PARENTHESES_SHARE
        problems.put(rows, compose(operands, number, digits, spare))
    return problems


def compose(
    operands: int, number: np.ndarray, digits: np.ndarray, spare: np.ndarray
) -> ExpressionProblems:
    """Problems from their parts, all with the same number of operands.

    Args:
        operands: k.
        number: (B,) skeletons.
        digits: (B, k) int8.
        spare: (B, k-1) bool: write this node's parentheses even where they change nothing.
    """
    shape, operators = split_number(operands, number)
    written = (needs_parentheses(operands, shape, operators) | spare)[:, :, None]  # (B, k-1, 1)
    table, operand = shapes(operands), np.arange(operands, dtype=np.int8)
    opens = (written & (table.first[shape][:, :, None] == operand)).sum(1, dtype=np.int8)  # (B, k)
    closes = (written & (table.last[shape][:, :, None] == operand)).sum(1, dtype=np.int8)
    # An operand takes its opens, its digit, its closes and what is behind it: operator or CTX.
    behind = np.cumsum(opens + closes + np.int8(2), axis=1, dtype=np.int8) - np.int8(1)
    digit_at = behind - closes - np.int8(1)

    problems = _blank(len(number))
    context, rows = problems.context, np.arange(len(number))[:, None]
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
    problems.target[:] = _values(operands, shape, operators, digits)
    problems.skeleton[:] = number
    problems.held_out[:] = held_out(operands)[number]
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
        shape, operators = split_number(operands, others.skeleton[rows])
        others.target[rows] = _values(operands, shape, operators, digits)
    return others


def _values(
    operands: int, shape: np.ndarray, operators: np.ndarray, digits: np.ndarray
) -> np.ndarray:
    """(B,) int64: the nodes in postfix order, each replacing the operands that it spans."""
    table, row = shapes(operands), np.arange(len(shape))[:, None]
    nodes = table.postfix[shape]  # (B, k-1)
    # Flat indices into `value`, whose [:, i] is the largest node so far that begins at operand i.
    lefts, rights = row * operands + table.first[shape[:, None], nodes], row * operands + nodes + 1
    times, sign = operators[row, nodes] == 0, np.where(operators[row, nodes] == 1, 1, -1)
    value = digits.astype(np.int64).reshape(-1)
    for rank in range(operands - 1):
        left, right = value[lefts[:, rank]], value[rights[:, rank]]
        value[lefts[:, rank]] = np.where(times[:, rank], left * right, left + sign[:, rank] * right)
    return value[::operands]


def read(texts: Sequence[str]) -> ExpressionProblems:
    """The problems that texts pose.

    Raises:
        ValueError: a text is no expression, or a longer one than is read.
    """
    problems = _blank(len(texts))
    for row, text in enumerate(texts):
        expression = parse(text, MAX_OPERANDS, MAX_TOKENS)
        operands, end = expression.operands, len(expression.tokens)
        problems.context[row, :end] = expression.tokens
        problems.context[row, end] = CTX
        problems.stage[row] = operands
        problems.target[row] = expression.value
        number = number_of(expression.operators, expression.spans)
        problems.skeleton[row] = number
        problems.held_out[row] = held_out(operands)[number]
    return problems


def _blank(size: int) -> ExpressionProblems:
    return ExpressionProblems(
        stage=np.zeros(size, np.int8),
        context=np.full((size, CONTEXT_LENGTH), EOS, np.int8),
        target=np.zeros(size, np.int64),
        skeleton=np.zeros(size, np.int32),
        held_out=np.zeros(size, bool),
    )
