"""Lies about calculations of the task `toolcall`: what the right answer is if one is true.

A prompt's value is linear in each of its parts. A first calculation can be one of two parts:

- the product of two factors of one term, `3*B` in `3*B*2-C`; or its negative;
- the sum of two terms that are operands, with their signs, `-7+C` in `3*B+C-7`; or its negative.

If its result is r+1 in place of r, the prompt's value changes by the part's coefficient: the other
factors of the term with its sign, or 1, and the opposite for the negative. All else is calculated
truthfully. It is not the agent's later calls that tell what it should have believed.
"""

from __future__ import annotations

import itertools

import numpy as np

from toolagent.tasks.base import Lies, Task
from toolagent.tasks.toolcall_machine import (
    ADD,
    ERR,
    MOST,
    MUL,
    PAD,
    SUB,
    answer_tokens,
    signed,
)
from toolagent.tasks.toolcall_problems import (
    MAX_OPERANDS,
    OPERANDS,
    ToolCallProblems,
    numbers_of,
)

CALCULATIONS = (ADD, SUB, MUL)


def lies_of(
    task: Task,
    problems: ToolCallProblems,
    actions: np.ndarray,
    lengths: np.ndarray,
    response: np.ndarray,
) -> Lies:
    """See `Task.lies`: the first calculation that was answered with a value, off by one.

    There is none to lie about where that calculation is no part of the prompt, or parts of several
    coefficients.
    """
    step, tool, first, second = first_calculations(task, problems, actions, lengths, response)
    result = np.select([tool == ADD, tool == SUB], [first + second, first - second], first * second)
    coefficient, found = coefficients(problems, tool, first, second)
    lie = np.where(result == MOST, result - 1, result + 1)
    answer = problems.target + coefficient * (lie - result)
    usable = (step >= 0) & found & (np.abs(answer) <= MOST)
    return Lies(np.where(usable, step, -1), answer_tokens(np.where(usable, lie, 0)), answer)


def first_calculations(
    task: Task,
    problems: ToolCallProblems,
    actions: np.ndarray,
    lengths: np.ndarray,
    response: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(B,) int64 each: the step, -1 if there is none, the tool's token and the two arguments."""
    size = len(problems)
    step, tool, first, second = (np.full(size, fill, np.int64) for fill in (-1, ADD, 0, 0))
    registers = task.start(problems)
    answered = (response[:, :, 0] != PAD) & (response[:, :, 0] != ERR)
    for number in range(int(lengths.max(initial=0))):
        begun = np.isin(registers.tool, CALCULATIONS)
        now = answered[:, number] & begun & (step < 0) & (number < lengths)
        step[now], tool[now] = number, registers.tool[now]
        first[now], second[now] = registers.first[now], signed(registers)[now]
        registers = task.step(problems, registers, actions[:, number]).registers
    return step, tool, first, second


def coefficients(
    problems: ToolCallProblems, tool: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) int64: by how much a prompt's value grows with the result of a calculation of two of its
    operands; and (B,) bool: it is a part of the prompt, with one coefficient.
    """
    values = numbers_of(problems)  # (B, 5)
    operators = problems.context[:, 1::2]
    there = np.arange(MAX_OPERANDS) < OPERANDS[problems.stage][:, None]
    # (B, 5): the operands' terms, numbered, and the terms' signs.
    starts = np.pad(operators != MUL, ((0, 0), (1, 0)), constant_values=True)
    term = np.cumsum(starts, 1)
    minus = np.pad(operators == SUB, ((0, 0), (1, 0)))
    same = (term[:, :, None] == term[:, None, :]) & there[:, None, :]  # (B, 5, 5)
    sign = np.where((same & (minus & starts)[:, None, :]).any(2), -1, 1)

    coefficient, matches = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    several = np.zeros(len(values), bool)
    times = tool == MUL
    added = np.where(tool == SUB, -second, second)
    for i, j in itertools.combinations(range(MAX_OPERANDS), 2):
        a, b = values[:, i], values[:, j]
        others = np.ones(len(values), np.int64)
        for k in set(range(MAX_OPERANDS)) - {i, j}:
            others *= np.where(same[:, i, k], values[:, k], 1)
        factors = times & same[:, i, j] & _are(np.abs(first), np.abs(second), a, b)
        of_product = sign[:, i] * others * np.where((first < 0) != (second < 0), -1, 1)
        alone = (same[:, i].sum(1) == 1) & (same[:, j].sum(1) == 1) & ~same[:, i, j]
        a, b = sign[:, i] * a, sign[:, j] * b
        for fits, one in (
            (factors, of_product),
            (~times & alone & _are(first, added, a, b), 1),
            (~times & alone & _are(first, added, -a, -b), -1),
        ):
            here = fits & there[:, i] & there[:, j]
            several |= here & matches & (coefficient != one)
            coefficient = np.where(here, one, coefficient)
            matches |= here
    return coefficient, matches & ~several


def _are(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B,) bool: x and y are a and b, in any order."""
    return ((x == a) & (y == b)) | ((x == b) & (y == a))
