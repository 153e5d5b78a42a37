"""Columns of episodes as the batches that learners take."""

from __future__ import annotations

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from toolagent.phases import timed

STEP_COLUMNS = ("actions", "rewards", "log_probabilities", "response")  # (B, T, ...)


def learner_batches(columns: dict[str, np.ndarray], num_learners: int) -> list[MultiAgentBatch]:
    """A batch for each learner (one for the local learner), with every n-th episode.

    Args:
        columns: (B, ...); those of `STEP_COLUMNS` are (B, T, ...), cut to the longest episode of
            the batch; with `lengths`, and `replayed`, whose steps are not counted as env steps.
        num_learners: remote ones.
    """
    shards = max(1, num_learners)
    return [
        _batch({name: column[shard::shards] for name, column in columns.items()})
        for shard in range(shards)
    ]


@timed("hand batches to the learners")
def training_data(batches: list[MultiAgentBatch], num_learners: int) -> TrainingData:
    """The batches as `LearnerGroup.update` takes them.

    Remote learners' travel with the call: below 100 KB Ray sends them in the message itself, which
    spares a put and a get by each learner; larger ones it puts by itself.
    """
    if num_learners:
        return TrainingData(batches=batches)
    return TrainingData(batch=batches[0])


def _batch(columns: dict[str, np.ndarray]) -> MultiAgentBatch:
    steps = int(columns["lengths"].max())
    for name in columns.keys() & set(STEP_COLUMNS):
        columns[name] = columns[name][:, :steps]
    return MultiAgentBatch(
        {DEFAULT_MODULE_ID: SampleBatch(columns)},
        env_steps=int(columns["lengths"][~columns["replayed"]].sum()),
    )
