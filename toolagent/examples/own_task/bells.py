"""A task of one's own: take the elevator to the right floor with three tools, and ring."""

from dataclasses import dataclass

import numpy as np

from toolagent.tasks import Problems, Registers, Task, Transition, Vocabulary

UP, LIFT, RING = range(3)


@dataclass
class Floors(Problems):
    """What is asked for."""

    floor: np.ndarray  # (B,) int64


@dataclass
class Elevator(Registers):
    """What the tools change; the agent does not see it."""

    at: np.ndarray  # (B,) int64


class BellsTask(Task):
    """`UP` goes up one floor, `LIFT` three; `RING` ends the episode, with reward 1 on the right
    floor. Stage 0 asks for the floors 0 to 3, stage 1 for 0 to 9."""

    name = "bells"
    vocabulary = Vocabulary(
        actions=("UP", "LIFT", "RING"),
        observed=("START", "NONE", *(f"F{floor}" for floor in range(10))),
        start="START",
        pad="NONE",
        answer="RING",
    )
    num_stages = 2
    context_length = 1
    max_actions = 8
    posed_by = problem_columns = ("floor",)

    def sample(self, rng, stage, split="all"):
        return self.pose(stage, floor=rng.integers(0, np.where(stage == 0, 4, 10)))

    def start(self, problems):
        return Elevator(np.zeros(len(problems), np.int8), np.zeros(len(problems), np.int64))

    def step(self, problems, registers, actions):
        steps = registers.steps + np.int8(1)
        at = registers.at + (actions == UP) + 3 * (actions == LIFT)
        terminated = actions == RING
        solved = terminated & (at == problems.floor)
        return Transition(
            registers=Elevator(steps, at),
            rewards=solved.astype(np.float64),
            terminated=terminated,
            truncated=~terminated & (steps >= self.max_actions),
            solved=solved,
        )

    def target(self, problems):
        return problems.floor

    # Not needed to train: problems can be given, and people are told what happens.

    def pose(self, stage, **given):
        floor = np.asarray(given["floor"]).astype(np.int64)
        stage = np.full(len(floor), stage, np.int8)
        if ((floor < 0) | (floor > np.where(stage == 0, 3, 9))).any():
            raise ValueError(f"there is no such floor in this stage: {floor.tolist()}")
        context = (self.vocabulary.token("F0") + floor)[:, None].astype(np.int8)
        return Floors(stage, context, floor)

    def accumulator(self, registers):
        return registers.at, np.ones(len(registers), bool)

    def show(self, registers, row):
        return {"at": int(registers.at[row])}
