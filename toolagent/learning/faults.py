"""Checks of sampled batches and of learners."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.cluster.ray_internals import learner_manager
from toolagent.rollouts.episode_batch import EpisodeBatch

MOST_SKIPPED_IN_A_ROW = 10  # gradient steps that were no numbers, then learning has failed
_FLOAT_COLUMNS = ("rewards", "log_probabilities", "baseline")


class LearningFailed(RuntimeError):
    """Learning can't go on in this algorithm; in a new one, from a checkpoint, it may."""


def fault_in(batch: EpisodeBatch) -> str | None:
    """What is wrong with the batch; None if it is sound."""
    for name in _FLOAT_COLUMNS:
        if not np.isfinite(getattr(batch, name)).all():
            return f"{name} that are no finite numbers"
    longest = batch.actions.shape[1]
    if len(batch) == 0 or batch.lengths.min() < 1 or batch.lengths.max() > longest:
        return f"episodes of other than 1 to {longest} actions"
    return None


def lost_learners(algorithm: Any) -> int:
    """How many of the remote learners are known to be dead.

    RLlib leaves a dead learner out and goes on; without any, it goes on without learning.
    """
    manager = learner_manager(algorithm)
    return 0 if manager is None else manager.num_actors() - manager.num_healthy_actors()


def check_learners(algorithm: Any) -> None:
    """Raises LearningFailed if a remote learner is dead."""
    lost = lost_learners(algorithm)
    if lost:
        raise LearningFailed(f"{lost} of {algorithm.config.num_learners} learners died")
