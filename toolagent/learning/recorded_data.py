"""Recorded episodes as RLlib's offline data: columns of whole episodes, drawn by the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.annotations import override

from toolagent.learning.batches import learner_batches
from toolagent.learning.record_choice import choose_episodes
from toolagent.rollouts.records import read_episodes

_STREAM = 0x6F66666C  # 'offl'


class RecordedEpisodesData(OfflineData):
    """Reads a folder of recorded episodes and draws batches from it, each episode once an epoch.

    RLlib's own `OfflineData` streams rows through Ray Data and makes an episode object of each,
    which suits data that does not fit into memory. The records of a run do: 60 bytes an episode.
    That RLlib's own is slower here is expected of its object per episode; it was not measured.

    Args:
        config: its `input_` is the folder; `record_choice.choose_episodes` says which settings
            choose among what is in it.

    Raises:
        UserError: there are no such episodes.
    """

    @override(OfflineData)
    def __init__(self, config: Any):
        self.config = config
        self.path = str(config.input_)
        self.episodes = choose_episodes(read_episodes(self.path, config.env_config["task"]), config)
        seed = None if config.seed is None else (int(config.seed), _STREAM)
        self._rng = np.random.default_rng(np.random.SeedSequence(seed))
        self._order = np.zeros(0, np.int64)
        # What RLlib tells an OfflineData, and this one has no use for.
        self.locality_hints = self.learner_handles = self.module_spec = self.spaces = None

    def __len__(self) -> int:
        return len(self.episodes)

    @override(OfflineData)
    def sample(
        self,
        num_samples: int,
        return_iterator: bool = False,
        num_shards: int = 1,
        module_state: dict[str, Any] | None = None,
    ) -> list[MultiAgentBatch]:
        """One gradient step's episodes, for each learner its share.

        Args:
            num_samples: episodes, over all shards.
            return_iterator: not supported; a batch is drawn when it is needed.
            num_shards: learners.
            module_state: not needed.
        """
        if return_iterator:
            raise ValueError("return_iterator: batches are drawn one at a time")
        while len(self._order) < num_samples:
            self._order = np.append(self._order, self._rng.permutation(len(self.episodes)))
        rows, self._order = self._order[:num_samples], self._order[num_samples:]
        columns = dict(self.episodes.take(rows).columns())
        columns["replayed"] = np.zeros(num_samples, bool)  # all of them count as learned from
        del columns["solved"]
        return learner_batches(columns, num_shards)

    def get_state(self) -> dict[str, Any]:
        """For the algorithm's checkpoint: what comes next."""
        return {"stream": self._rng.bit_generator.state, "order": self._order.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`; records that have become fewer begin a new epoch."""
        self._rng.bit_generator.state = state["stream"]
        order = np.array(state["order"])
        self._order = order if (order < len(self.episodes)).all() else order[:0]
