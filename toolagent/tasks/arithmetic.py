"""The problems that `tutorial` and `calculator` share: five digits, three stages.

| stage | context shown | target    |
|-------|---------------|-----------|
| 0     | a b c         | a*b+c     |
| 1     | a b c d       | a*b+c-d   |
| 2     | a b c d e     | a*b+c-d*e |
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.tasks.base import Problems, Task
from toolagent.tasks.oracle import shortest_programs
from toolagent.tasks.tokens import CTX, EOS, TOOLS, VOCABULARY

NUM_DIGITS = 5
FORMULAS = ("a*b+c", "a*b+c-d", "a*b+c-d*e")
SUBGOALS = ("a*b", "a*b+c", "a*b+c-d", "d*e", "a*b+c-d*e")  # the columns of `subgoals`
EXAMPLE = (3, 4, 5, 6, 7)

# Shaping: subgoal g0=a*b, g1=g0+c, g2=g1-d, g3=d*e, g4=g1-g3 is worth this much at a stage's ANS.
SHAPING = np.array(
    [
        [0.25, 0.5, 0.0, 0.0, 0.0],
        [0.25, 0.5, 0.75, 0.0, 0.0],
        [0.2, 0.4, 0.0, 0.6, 0.6],
    ]
)
SHAPING_COEFFICIENT = 0.2
TARGET_SUBGOAL = np.array([1, 2, 4])  # the subgoal that a stage's target is


@dataclass
class ArithmeticProblems(Problems):
    """B problems over five digits; `subgoals` are what the reward compares with."""

    digits: np.ndarray  # (B, 5) int8: always five; the stage shows the first 3 + stage
    subgoals: np.ndarray  # (B, 5) int16: g0..g4


class ArithmeticTask(Task):
    """Sampling, posing and enumerating the three stages; the machine is the subclass's."""

    num_stages = 3
    formulas = FORMULAS
    context_length = 6
    vocabulary = VOCABULARY
    tools = TOOLS
    max_actions = 7
    one_plan_a_stage = True
    problem_columns = tuple("abcde")
    posed_by = ("digits",)

    def sample(
        self, rng: np.random.Generator, stage: np.ndarray, split: str = "all"
    ) -> ArithmeticProblems:
        digits = rng.integers(0, 10, size=(len(stage), NUM_DIGITS), dtype=np.int8)
        return _problems(np.asarray(stage, dtype=np.int8), digits)

    def pose(self, stage: np.ndarray | None, **given: Any) -> ArithmeticProblems:
        if stage is None:
            raise ValueError(f"task '{self.name}' is posed with a stage: it tells what is shown")
        stage = np.atleast_1d(self.check_stage(stage))
        unknown = sorted(set(given) - {"digits"})
        if unknown or "digits" not in given:
            raise ValueError(
                f"task '{self.name}' is posed by 'digits', five per problem"
                + (f", not by '{unknown[0]}'" if unknown else "")
            )
        digits = np.asarray(given["digits"])
        if digits.ndim == 1:
            digits = digits[None]
        if digits.shape != (len(stage), NUM_DIGITS):
            raise ValueError(
                f"digits have shape {digits.shape}; expected ({len(stage)}, {NUM_DIGITS}): "
                "five per problem, whatever the stage shows"
            )
        if digits.dtype.kind not in "iu" or ((digits < 0) | (digits > 9)).any():
            raise ValueError(f"digits are integers 0..9, not {digits.tolist()}")
        return _problems(stage, digits.astype(np.int8))

    def num_problems(self, stage: int) -> int:
        return int(10 ** (3 + int(self.check_stage(stage))))

    def problems(self, stage: int, start: int, stop: int) -> ArithmeticProblems:
        index = np.arange(start, min(stop, self.num_problems(stage)))
        digits = np.zeros((len(index), NUM_DIGITS), dtype=np.int8)
        shown = 3 + stage
        for position in range(shown):  # the digits of the index, most significant first
            digits[:, position] = index // 10 ** (shown - 1 - position) % 10
        return _problems(np.full(len(index), stage, dtype=np.int8), digits)

    def target(self, problems: ArithmeticProblems) -> np.ndarray:
        rows = np.arange(len(problems))
        return problems.subgoals[rows, TARGET_SUBGOAL[problems.stage]].astype(np.int64)

    def read(self, context: np.ndarray) -> dict[str, np.ndarray]:
        shown = context[:, :NUM_DIGITS]
        return {"digits": np.where(shown < 10, shown, 0).astype(np.int8)}

    def describe(self, problems: ArithmeticProblems, row: int) -> str:
        formula = FORMULAS[problems.stage[row]]
        numbers = formula
        for letter, digit in zip("abcde", problems.digits[row], strict=True):
            numbers = numbers.replace(letter, str(digit))
        return f"{formula} = {numbers} = {self.target(problems.take(np.array([row])))[0]}"

    def example(self, stage: int | None = None) -> ArithmeticProblems:
        stage = self.stages[-1] if stage is None else stage
        return self.pose(np.array([stage]), digits=np.array([EXAMPLE]))

    def shown_columns(self, stage: int) -> tuple[str, ...]:
        return self.problem_columns[: 3 + int(self.check_stage(stage))]

    def terms(self, problems: ArithmeticProblems, row: int) -> dict[str, int]:
        hidden = set(self.problem_columns) - set(self.shown_columns(problems.stage[row]))
        return {
            name: int(value)
            for name, value in zip(SUBGOALS, problems.subgoals[row], strict=True)
            if not hidden & set(name)
        }

    def plan(self, problems: ArithmeticProblems, row: int) -> tuple[int, ...] | None:
        # One program solves every problem of a stage, found by search.
        return _plan(type(self), int(problems.stage[row]), ())

    def continuation(
        self, problems: ArithmeticProblems, row: int, tokens: Sequence[int]
    ) -> tuple[int, ...] | None:
        program = _plan(type(self), int(problems.stage[row]), tuple(map(int, tokens)))
        return program and program[len(tokens) :]


@functools.cache
def _plan(
    task: type[ArithmeticTask], stage: int, prefix: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shortest program for the stage that begins with the prefix."""
    programs = shortest_programs(task(), stage, prefix=prefix)
    return programs[0] if programs else None


def shaping(problems: ArithmeticProblems, value: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """(B,) the shaping sum: the weights of the subgoals that the register equals."""
    hits = (problems.subgoals == value[:, None]) & filled[:, None]  # (B, 5)
    return (SHAPING[problems.stage] * hits).sum(axis=1)


def _problems(stage: np.ndarray, digits: np.ndarray) -> ArithmeticProblems:
    a, b, c, d, e = digits.T.astype(np.int16)
    subgoals = np.empty(digits.shape, dtype=np.int16)
    subgoals[:, 0] = a * b
    subgoals[:, 1] = subgoals[:, 0] + c
    subgoals[:, 2] = subgoals[:, 1] - d
    subgoals[:, 3] = d * e
    subgoals[:, 4] = subgoals[:, 1] - subgoals[:, 3]
    context = np.full((len(digits), ArithmeticTask.context_length), EOS, dtype=np.int8)
    context[:, :NUM_DIGITS] = digits
    shown = 3 + stage[:, None]
    position = np.arange(ArithmeticTask.context_length)
    np.copyto(context, EOS, where=position > shown)
    np.copyto(context, CTX, where=position == shown)
    return ArithmeticProblems(stage, context, digits, subgoals)
