"""Accuracy as it is meant here: the greedy agent's exact answer, counted over all problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.tasks import Task

CHUNK = 4096  # problems played at once: larger is no faster


@dataclass(frozen=True)
class StageAccuracy:
    """How many problems of a stage the greedy agent solves."""

    stage: int
    problems: int
    solved: int

    @property
    def accuracy(self) -> float:
        return self.solved / self.problems

    @property
    def certified(self) -> bool:
        """Every problem was counted and every one is solved."""
        return self.solved == self.problems


def certify_stage(network: StageGRUNetwork, task: Task, stage: int) -> StageAccuracy:
    """Plays every problem of the stage greedily: no sample, no random number."""
    total = task.num_problems(stage)
    solved = 0
    for start in range(0, total, CHUNK):
        batch = play(network, task, task.problems(stage, start, start + CHUNK))
        solved += int(batch.solved.sum())
    return StageAccuracy(stage, total, solved)


def certify(network: StageGRUNetwork, task: Task) -> list[StageAccuracy]:
    """All stages of the task."""
    return [certify_stage(network, task, stage) for stage in range(task.num_stages)]


def measure(
    network: StageGRUNetwork, task: Task, rng: np.random.Generator, problems_per_stage: int
) -> tuple[list[StageAccuracy], EpisodeBatch]:
    """Greedy accuracy on fresh problems: an estimate, cheap enough for use during training.

    Args:
        rng: a stream of its own, so that measuring changes nothing in training.

    Returns:
        One count a stage, and the episodes played.
    """
    stages = np.repeat(np.arange(task.num_stages, dtype=np.int8), problems_per_stage)
    batch = play(network, task, task.sample(rng, stages))
    return [
        StageAccuracy(stage, problems_per_stage, int(batch.solved[stages == stage].sum()))
        for stage in range(task.num_stages)
    ], batch
