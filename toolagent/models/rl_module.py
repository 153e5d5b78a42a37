"""The network as an RLlib RLModule: stateful in env runners, padded sequences in the learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from toolagent.models.network import NetworkSizes, StageGRUNetwork

HIDDEN = "hidden"
STARTED = "started"


class StageGRUModule(TorchRLModule, ValueFunctionAPI):
    """`StageGRUNetwork` behind RLlib's forward methods.

    The hidden state starts from the observation (context and stage), which RLlib's
    `get_initial_state` does not see. The state therefore carries a flag, 0 until the first
    forward pass of an episode has put the context's summary in place.

    Shapes in `batch`: `obs["context"]` (B, T, L), `obs["stage"]` and `obs["previous_token"]`
    (B, T), `state_in["hidden"]` (B, D), `state_in["started"]` (B, 1).

    In the learner the batch may also be the columns of whole episodes (`context` (B, L), `stage`
    (B,), `actions` (B, T), `lengths` (B,)): what was observed follows from them.

    Model config: `embedding_size` (96), `max_seq_len` (at least the task's actions + 1 keeps an
    episode in one piece in the learner; shorter ones are right too, and slower).
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        config = self.model_config or {}
        self.network = StageGRUNetwork(sizes_from_space(self.observation_space, config))

    @override(TorchRLModule)
    def get_initial_state(self) -> dict[str, np.ndarray]:
        width = self.network.sizes.embedding_size
        return {HIDDEN: np.zeros(width, np.float32), STARTED: np.zeros(1, np.float32)}

    @override(TorchRLModule)
    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs, state_out = self._unroll(batch)
        return {
            Columns.ACTION_DIST_INPUTS: self.network.logits(outputs),
            Columns.STATE_OUT: state_out,
        }

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if Columns.OBS not in batch:  # the columns of whole episodes
            logits, values = self.network.unroll_episodes(
                batch["context"], batch["stage"], batch["actions"], batch["lengths"]
            )
            return {Columns.ACTION_DIST_INPUTS: logits, Columns.VF_PREDS: values}
        outputs, state_out = self._unroll(batch)
        return {
            Columns.ACTION_DIST_INPUTS: self.network.logits(outputs),
            Columns.STATE_OUT: state_out,
            Columns.EMBEDDINGS: outputs,  # spares `compute_values` a second pass
        }

    @override(ValueFunctionAPI)
    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """(B, T) values."""
        if embeddings is None:
            embeddings, _ = self._unroll(batch)
        return self.network.values(embeddings)

    def _unroll(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        observation, state = batch[Columns.OBS], batch[Columns.STATE_IN]
        started = state[STARTED] > 0  # (B, 1)
        first = self.network.initial_hidden(
            observation["context"][:, 0], observation["stage"][:, 0]
        )
        hidden = torch.where(started, state[HIDDEN], first)
        outputs, hidden = self.network.unroll(observation["previous_token"], hidden)
        return outputs, {HIDDEN: hidden, STARTED: torch.ones_like(state[STARTED])}


def sizes_from_space(observation_space: Any, model_config: dict[str, Any]) -> NetworkSizes:
    """The network's sizes, read off the observation space."""
    return NetworkSizes(
        context_vocabulary=int(observation_space["context"].nvec.max()),
        num_stages=int(observation_space["stage"].n),
        embedding_size=int(model_config.get("embedding_size", 96)),
    )
