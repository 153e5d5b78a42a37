"""Task `tutorial`: the published tutorial's machine, its faults included.

Its reward checks the target one stage behind the stated one, and on stage 2 no program of tools
computes the stated target. It is kept, rule for rule, as the thing to be measured against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolagent.tasks.arithmetic import (
    SHAPING_COEFFICIENT,
    ArithmeticProblems,
    ArithmeticTask,
    shaping,
)
from toolagent.tasks.base import Registers, Transition
from toolagent.tasks.tokens import ADD, ANS, MUL, RCL, STO, SUB


@dataclass
class TutorialRegisters(Registers):
    """`last` holds the running result; `mem` is only a flag, nothing is stored in it."""

    last: np.ndarray  # (B,) int64, 0 where empty
    filled: np.ndarray  # (B,) bool: last is not empty
    mem: np.ndarray  # (B,) bool: STO was used


class TutorialTask(ArithmeticTask):
    """The published tutorial's machine.

    - `MUL`: empty last: last = a*b; otherwise last is multiplied by d (by 1 in stage 0).
    - `ADD`: if last is filled: last += c.
    - `SUB`: if last is filled: subtract e in stage 2 with mem set, else d in stages 1, 2, else 0.
    - `STO`: sets mem, even with an empty last.
    - `RCL`, if mem is set: stage 2: last = d*e; otherwise last stays (an empty last becomes 0).
    - `ANS`: ends the episode; 1 if last equals the target of the stage *before*, plus shaping.
    """

    name = "tutorial"
    rewards_target = False  # but the target of the stage before

    def start(self, problems: ArithmeticProblems) -> TutorialRegisters:
        size = len(problems)
        return TutorialRegisters(
            steps=np.zeros(size, np.int8),
            last=np.zeros(size, np.int64),
            filled=np.zeros(size, bool),
            mem=np.zeros(size, bool),
        )

    def step(
        self, problems: ArithmeticProblems, registers: TutorialRegisters, actions: np.ndarray
    ) -> Transition:
        stage, digits = problems.stage, problems.digits
        last, filled, mem = registers.last, registers.filled, registers.mem
        final_stage = stage == 2
        multiply, recall = actions == MUL, (actions == RCL) & mem

        subtrahend = np.where(final_stage & mem, digits[:, 4], digits[:, 3])
        value = np.where(
            filled,
            last * np.where(multiply & (stage > 0), digits[:, 3], 1)
            + np.where((actions == ADD), digits[:, 2], 0)
            - np.where((actions == SUB) & (stage > 0), subtrahend, 0),
            np.where(multiply, problems.subgoals[:, 0], 0),
        )
        value = np.where(recall & final_stage, problems.subgoals[:, 3], value)

        steps = registers.steps + np.int8(1)
        terminated = actions == ANS
        # The tutorial's slip, kept: the checked subgoal is the one before the stated target.
        right = filled & (value == problems.subgoals[np.arange(len(stage)), stage])
        rewards = right + SHAPING_COEFFICIENT * shaping(problems, value, filled)
        return Transition(
            registers=TutorialRegisters(
                steps, value, filled | multiply | recall, mem | (actions == STO)
            ),
            rewards=np.where(terminated, rewards, 0.0),
            terminated=terminated,
            truncated=~terminated & (steps >= self.max_actions),
            solved=terminated & filled & (value == self.target(problems)),
        )

    num_statuses = 4

    def status(self, registers: TutorialRegisters) -> np.ndarray:
        return registers.filled + 2 * registers.mem.astype(np.int8)

    def accumulator(self, registers: TutorialRegisters) -> tuple[np.ndarray, np.ndarray]:
        return registers.last, registers.filled

    def show(self, registers: TutorialRegisters, row: int) -> dict[str, int | None]:
        return {
            "last": int(registers.last[row]) if registers.filled[row] else None,
            "mem": 1 if registers.mem[row] else None,
        }
