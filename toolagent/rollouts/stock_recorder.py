"""Recording under RLlib's own SingleAgentEnvRunner: its episodes, as an episode batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns

from toolagent.cluster.ray_internals import weights_number
from toolagent.models.base import AgentNetwork, as_responses
from toolagent.rollouts.episode_batch import EpisodeBatch, empty_batch
from toolagent.rollouts.play import PlayDetails
from toolagent.rollouts.recorder import RECORDING, EpisodeRecorder, recorder_of
from toolagent.tasks import Task, get_task

# A whole episode in the pieces in which fragments returned it, the first one first.
Pieces = list[Any]


class RecordEpisodesCallback(RLlibCallback):
    """Records the finished episodes of each `sample()` where `env_config` asks for it.

    An episode that truncated fragments cut in pieces is put together again. This runner keeps no
    values: they are read from the finished episodes with the weights that it has by then, whose
    number is the `policy_version`.
    """

    def on_sample_end(self, *, env_runner: Any, samples: Any, **kwargs: Any) -> None:
        """Hands the finished episodes to the runner's recorder."""
        if not env_runner.config.env_config.get(RECORDING) or isinstance(samples, EpisodeBatch):
            return
        if not hasattr(env_runner, "recorder"):
            task = get_task(env_runner.config.env_config["task"])
            env_runner.recorder = recorder_of(env_runner, task)
            env_runner.episode_pieces = {}
        recorder: EpisodeRecorder | None = env_runner.recorder
        if recorder is None or not recorder.active:
            return
        whole = finished(samples, env_runner.episode_pieces)
        if whole:
            network = env_runner.module.network
            batch, details = batch_of_episodes(whole, recorder.task, network)
            recorder.add(batch, details, weights_number(env_runner))


def finished(samples: list[Any], under_way: dict[str, Pieces]) -> list[Pieces]:
    """The episodes that these pieces end; those that go on wait in `under_way`, by their id."""
    whole = []
    for piece in samples:
        pieces = [*under_way.pop(piece.id_, []), piece]
        if pieces[0].t_started > 0:  # began before this runner's recorder did
            continue
        if piece.is_done:
            whole.append(pieces)
        elif len(piece):
            under_way[piece.id_] = pieces
        elif pieces[:-1]:
            under_way[piece.id_] = pieces[:-1]
    return whole


def batch_of_episodes(
    episodes: list[Pieces], task: Task, network: AgentNetwork
) -> tuple[EpisodeBatch, PlayDetails]:
    """RLlib's finished `SingleAgentEpisode`s in columns (slow: a Python loop over episodes)."""
    first = [pieces[0].get_observations(0) for pieces in episodes]
    batch = empty_batch(
        task,
        np.stack([observation["context"] for observation in first]).astype(np.int8),
        np.array([observation["stage"] for observation in first], np.int8),
    )
    details = PlayDetails.empty(len(batch), task.max_actions)
    details.unseen = {
        name: np.array([pieces[0].get_infos(0)[name] for pieces in episodes]).astype(column.dtype)
        for name, column in task.unseen(task.example()).items()
    }
    for row, pieces in enumerate(episodes):
        length = sum(map(len, pieces))
        batch.lengths[row] = length
        for column, parts in (
            (batch.actions, [piece.get_actions() for piece in pieces]),
            (batch.rewards, [piece.get_rewards() for piece in pieces]),
            (
                batch.log_probabilities,
                [piece.get_extra_model_outputs(Columns.ACTION_LOGP) for piece in pieces],
            ),
        ):
            column[row, :length] = np.concatenate([np.asarray(part) for part in parts])
        if task.response_length:  # an action's response is observed with what comes after it
            seen = [piece.get_observations(slice(1, None)) for piece in pieces]
            batch.response[row, :length] = np.concatenate([part["response"] for part in seen])
        last = pieces[-1].get_infos(-1)
        batch.solved[row] = bool(last.get("solved", False))
        answered = not task.answer_ends  # then `acc` is None unless it was answered
        answered |= batch.actions[row, length - 1] == task.vocabulary.answer_token
        answer = last.get("acc") if answered else None
        if answer is not None:
            details.answers[row], details.answered[row] = answer, True
    with torch.no_grad():
        _, values = network.unroll_episodes(
            torch.from_numpy(batch.context),
            torch.from_numpy(batch.stage),
            torch.from_numpy(batch.actions),
            torch.from_numpy(batch.lengths),
            as_responses(batch.response),
        )
    details.values[:, : values.shape[1]] = values.numpy()
    return batch, details
