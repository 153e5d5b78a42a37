"""What a task is: a problem generator plus a machine that gives the tool tokens their meaning.

Machines are pure and batched: `step` maps the registers of B episodes and B actions to new
registers. There is one implementation per machine; the single and the vector environment, the
batched rollout, the certification and the oracle are all views of it.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from toolagent.tasks.columns import Columns


@dataclass
class Problems(Columns):
    """B problems. Tasks add the columns that their machine needs."""

    stage: np.ndarray  # (B,) int8
    context: np.ndarray  # (B, context_length) int8: what the agent reads


@dataclass
class Registers(Columns):
    """The machine's registers in B episodes. Tasks add their own."""

    steps: np.ndarray  # (B,) int8: actions taken so far


@dataclass(frozen=True)
class Transition:
    """What one action did in each of B episodes."""

    registers: Any  # the task's Registers after the action
    rewards: np.ndarray  # (B,) float64
    terminated: np.ndarray  # (B,) bool: answered
    truncated: np.ndarray  # (B,) bool: out of actions
    solved: np.ndarray  # (B,) bool: answered, and the answer is exactly right

    @property
    def done(self) -> np.ndarray:
        """(B,) bool: the episode is over, answered or not."""
        return self.terminated | self.truncated


class Task(abc.ABC):
    """Problem generator and machine. Stateless: everything travels in the columns."""

    name: ClassVar[str]
    num_stages: ClassVar[int]
    formulas: ClassVar[tuple[str, ...]]  # what each stage asks for: 'a*b+c'
    context_length: ClassVar[int]
    context_vocabulary: ClassVar[int]  # context tokens are integers below this
    max_actions: ClassVar[int]  # an episode is truncated after this many actions

    # Problems -----------------------------------------------------------------------------

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, stage: np.ndarray) -> Any:
        """Draws one problem for each entry of `stage`, (B,) integers."""

    @abc.abstractmethod
    def pose(self, stage: np.ndarray, **given: Any) -> Any:
        """The given problems, named as in `reset(options=...)` and in problem files.

        Raises:
            ValueError: a value is out of range or of the wrong shape.
        """

    @abc.abstractmethod
    def num_problems(self, stage: int) -> int:
        """How many problems the stage has."""

    @abc.abstractmethod
    def problems(self, stage: int, start: int, stop: int) -> Any:
        """Problems `start`..`stop` of the stage, in a fixed order that has each exactly once."""

    @abc.abstractmethod
    def describe(self, problems: Any, row: int) -> str:
        """One problem as a person reads it: 'a*b+c = 3*4+5 = 17'."""

    @abc.abstractmethod
    def read(self, context: np.ndarray) -> dict[str, Any]:
        """What `pose` needs besides the stage, read back from (B, L) contexts.

        What a stage does not show can't be read, and counts for nothing in the problem.
        """

    # Machine ------------------------------------------------------------------------------

    @abc.abstractmethod
    def start(self, problems: Any) -> Any:
        """The registers at the beginning of B episodes."""

    @abc.abstractmethod
    def step(self, problems: Any, registers: Any, actions: np.ndarray) -> Transition:
        """One action in each of B episodes that are not over; changes none of its arguments.

        Args:
            actions: (B,) integers 0..17; checked by the caller (`tokens.check_actions`).
        """

    @abc.abstractmethod
    def accumulator(self, registers: Any) -> tuple[np.ndarray, np.ndarray]:
        """(B,) int64 values the machine would answer with, and (B,) bool where there is one."""

    @abc.abstractmethod
    def show(self, registers: Any, row: int) -> dict[str, int | None]:
        """One episode's registers by name, None where empty: for people, not for the agent."""

    @abc.abstractmethod
    def target(self, problems: Any) -> np.ndarray:
        """(B,) int64: the right answers."""

    num_statuses: ClassVar[int]  # `status` is an integer below this; 0 is every episode's first

    @abc.abstractmethod
    def status(self, registers: Any) -> np.ndarray:
        """(B,) int8: which registers are filled and how far the machine has read, not with what.

        For exploration bonuses only; the agent never observes it.
        """

    # What both environments check -----------------------------------------------------------

    def check_stage(self, stage: Any) -> np.ndarray:
        """The stage(s) as int8.

        Raises:
            ValueError: not an integer, or not a stage of this task.
        """
        array = np.asarray(stage)
        if array.dtype.kind not in "iu" or ((array < 0) | (array >= self.num_stages)).any():
            raise ValueError(
                f"stage {stage} is not in task '{self.name}'; its stages are "
                f"0..{self.num_stages - 1}"
            )
        return array.astype(np.int8)
