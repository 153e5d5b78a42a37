"""Recording under RLlib's own SingleAgentEnvRunner: its episodes, as an episode batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns

from toolagent.rollouts.episode_batch import EpisodeBatch, empty_batch
from toolagent.rollouts.recorder import EpisodeRecorder
from toolagent.tasks import Task, get_task


class RecordEpisodesCallback(RLlibCallback):
    """Records the whole episodes of each `sample()` where `env_config` names a folder for them.

    An episode cut by a truncated fragment comes in pieces and is not recorded; use
    `batch_mode: complete_episodes`.
    """

    def on_sample_end(self, *, env_runner: Any, samples: Any, **kwargs: Any) -> None:
        """Hands the finished episodes to the runner's recorder."""
        folder = env_runner.config.env_config.get("record_episodes")
        if not folder or isinstance(samples, EpisodeBatch):
            return
        recorder = getattr(env_runner, "toolagent_recorder", None)
        if recorder is None:
            task = get_task(env_runner.config.env_config["task"])
            recorder = EpisodeRecorder(folder, task, int(env_runner.worker_index or 0))
            env_runner.toolagent_recorder = recorder
        whole = [episode for episode in samples if episode.is_done and episode.t_started == 0]
        if whole:
            recorder.add(batch_of_episodes(whole, recorder.task))
            # The stock runner tells nobody that it stops, so nothing may wait in memory.
            recorder.flush()


def batch_of_episodes(episodes: list[Any], task: Task) -> EpisodeBatch:
    """RLlib's finished `SingleAgentEpisode`s in columns (slow: a Python loop over episodes)."""
    first = [episode.get_observations(0) for episode in episodes]
    batch = empty_batch(
        task,
        np.stack([observation["context"] for observation in first]).astype(np.int8),
        np.array([observation["stage"] for observation in first], np.int8),
    )
    for row, episode in enumerate(episodes):
        length = len(episode)
        batch.lengths[row] = length
        batch.actions[row, :length] = episode.get_actions()
        batch.rewards[row, :length] = episode.get_rewards()
        batch.log_probabilities[row, :length] = episode.get_extra_model_outputs(Columns.ACTION_LOGP)
        batch.solved[row] = bool(episode.get_infos(-1).get("solved", False))
    return batch
