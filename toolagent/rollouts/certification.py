"""Accuracy as it is meant here: the greedy agent's exact answer, counted over all problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts.play import play
from toolagent.tasks import Task

CHUNK = 4096  # problems played at once: larger is no faster


@dataclass(frozen=True)
class StageAccuracy:
    """How many problems of a stage the greedy agent solves."""

    stage: int
    problems: int
    solved: int
    mean_return: float = 0.0  # the mean reward of an episode; never an accuracy
    solved_in: tuple[int, ...] = ()  # [n]: problems solved in n actions

    @property
    def accuracy(self) -> float:
        """The share of solved problems, 0..1."""
        return self.solved / self.problems

    @property
    def certified(self) -> bool:
        """Every problem was counted and every one is solved."""
        return self.solved == self.problems


def certify_stage(network: StageGRUNetwork, task: Task, stage: int) -> StageAccuracy:
    """Plays every problem of the stage greedily: no sample, no random number."""
    total = task.num_problems(stage)
    solved_in, returns = np.zeros(task.max_actions + 1, np.int64), 0.0
    for start in range(0, total, CHUNK):
        batch = play(network, task, task.problems(stage, start, start + CHUNK))
        solved_in += np.bincount(batch.lengths[batch.solved], minlength=len(solved_in))
        returns += float(batch.returns.sum(dtype=np.float64))
    return StageAccuracy(
        stage, total, int(solved_in.sum()), returns / total, tuple(solved_in.tolist())
    )


def is_certified(network: StageGRUNetwork, task: Task, stage: int) -> bool:
    """Whether every problem of the stage is solved; stops looking at the first that is not."""
    total = task.num_problems(stage)
    return all(
        play(network, task, task.problems(stage, start, start + CHUNK)).solved.all()
        for start in range(0, total, CHUNK)
    )


def certify(network: StageGRUNetwork, task: Task) -> list[StageAccuracy]:
    """All stages of the task."""
    return [certify_stage(network, task, stage) for stage in range(task.num_stages)]


def measure(
    network: StageGRUNetwork, task: Task, rng: np.random.Generator, problems_per_stage: int
) -> list[StageAccuracy]:
    """Greedy accuracy on fresh problems: an estimate, cheap enough for use during training.

    Args:
        network: the agent.
        task: the machine and its problems.
        rng: a stream of its own, so that measuring changes nothing in training.
        problems_per_stage: how many are drawn.
    """
    stages = np.repeat(np.arange(task.num_stages, dtype=np.int8), problems_per_stage)
    batch = play(network, task, task.sample(rng, stages))
    rows = stages == np.arange(task.num_stages)[:, None]  # (S, B)
    return [
        StageAccuracy(
            stage,
            problems_per_stage,
            int(batch.solved[rows[stage]].sum()),
            float(batch.returns[rows[stage]].mean()),
        )
        for stage in range(task.num_stages)
    ]
