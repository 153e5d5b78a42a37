"""Ride to a floor and ring there: a task with three tools of its own, which can be posed and
listed."""

from dataclasses import dataclass

import numpy as np

from toolagent.tasks import Problems, Registers, Task, Transition, Vocabulary

UP, LIFT, RING = range(3)


@dataclass
class Rides(Problems):
    floor: np.ndarray  # (B,) int64: where to ring


@dataclass
class Elevator(Registers):
    at: np.ndarray  # (B,) int64: the floor it has come to


class ElevatorTask(Task):
    """`UP` goes up one floor, `LIFT` three; `RING` answers with the floor."""

    name = "elevator"
    vocabulary = Vocabulary(
        actions=("UP", "LIFT", "RING"),
        observed=("START", "NONE", *(f"F{floor}" for floor in range(10))),
        start="START",
        pad="NONE",
        answer="RING",
    )
    num_stages = 2
    context_length = 2
    max_actions = 8
    problem_columns = ("floor",)
    posed_by = ("floor",)

    def sample(self, rng, stage, split="all"):
        return self._rides(stage, rng.integers(0, np.where(np.asarray(stage) == 0, 4, 10)))

    def pose(self, stage, *, floor):
        stage, floor = np.atleast_1d(self.check_stage(stage)), np.atleast_1d(floor)
        if floor.shape != stage.shape or floor.dtype.kind not in "iu":
            raise ValueError(f"floor is {floor.tolist()}; expected a whole number for each problem")
        if ((floor < 0) | (floor >= np.where(stage == 0, 4, 10))).any():
            raise ValueError(f"floor is {floor.tolist()}; stage 0 has 0..3, stage 1 has 0..9")
        return self._rides(stage, floor)

    def num_problems(self, stage):
        return 4 if stage == 0 else 10

    def problems(self, stage, start, stop):
        floor = np.arange(start, min(stop, self.num_problems(stage)))
        return self._rides(np.full(len(floor), stage), floor)

    def read(self, context):
        return {"floor": context[:, 0] - self.vocabulary.token("F0")}

    def start(self, problems):
        return Elevator(np.zeros(len(problems), np.int8), np.zeros(len(problems), np.int64))

    def step(self, problems, registers, actions):
        steps = registers.steps + np.int8(1)
        at = registers.at + np.select([actions == UP, actions == LIFT], [1, 3])
        solved = (actions == RING) & (at == problems.floor)
        return Transition(
            registers=Elevator(steps, at),
            rewards=solved.astype(float),
            terminated=actions == RING,
            truncated=(actions != RING) & (steps >= self.max_actions),
            solved=solved,
        )

    def target(self, problems):
        return problems.floor

    def accumulator(self, registers):
        return registers.at, np.ones(len(registers), bool)

    def show(self, registers, row):
        return {"floor": int(registers.at[row])}

    def _rides(self, stage, floor):
        stage = np.asarray(stage, np.int8)
        context = np.full((len(stage), 2), self.vocabulary.pad_token, np.int8)
        context[:, 0] = self.vocabulary.token("F0") + floor
        return Rides(stage, context, floor.astype(np.int64))
