"""The networks as RLlib RLModules: stateful in env runners, padded sequences in the learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import (
    TARGET_NETWORK_ACTION_DIST_INPUTS,
    TargetNetworkAPI,
    ValueFunctionAPI,
)
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from toolagent.models.base import AgentNetwork, as_responses
from toolagent.models.compiler import load_compiler_late
from toolagent.models.registry import DEFAULT_NETWORK, network_class
from toolagent.phases import timed
from toolagent.tasks import get_task

HIDDEN = "hidden"
STARTED = "started"

load_compiler_late()  # every process of a run imports this module


class NetworkModule(TorchRLModule, ValueFunctionAPI, TargetNetworkAPI):
    """An `AgentNetwork` behind RLlib's forward methods: by default the stage-embedded GRU.

    The hidden state starts from the observation (context and stage), which RLlib's
    `get_initial_state` does not see. The state therefore carries a flag, 0 until the first
    forward pass of an episode has put the network's first hidden state in place.

    Shapes in `batch`: `obs["context"]` (B, T, L), `obs["stage"]` and `obs["previous_token"]`
    (B, T), where tools answer `obs["response"]` (B, T, R), `state_in["hidden"]` (B, S),
    `state_in["started"]` (B, 1).

    In the learner the batch may also be the columns of whole episodes (`context` (B, L), `stage`
    (B,), `actions` (B, T), `lengths` (B,), `response` (B, T, R)): what was observed follows from
    them.

    Of RLlib's algorithms, PPO, IMPALA and APPO (which needs a target network) learn with this
    module, and BC and MARWIL from recorded episodes. The others need Q-values or a continuous
    action space, and RLlib refuses the module when it builds them.

    Model config: `task` (its name or 'module:Class'), `network` (a name of
    `toolagent.models.registry.NETWORKS` or 'module:Class'), the network's `Options`, and
    `max_seq_len` (at least the task's actions + 1 keeps an episode in one piece in the learner;
    shorter ones are right too, and slower).
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        self.network = build_network(dict(self.model_config or {}))

    @override(TorchRLModule)
    def get_initial_state(self) -> dict[str, np.ndarray]:
        width = self.network.hidden_size
        return {HIDDEN: np.zeros(width, np.float32), STARTED: np.zeros(1, np.float32)}

    @override(TorchRLModule)
    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        logits, _, state_out = self._unroll(batch)
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.STATE_OUT: state_out}

    @override(TorchRLModule)
    @timed("forward")
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if Columns.OBS not in batch:  # the columns of whole episodes
            logits, values = self.network.unroll_episodes(
                batch["context"],
                batch["stage"],
                batch["actions"],
                batch["lengths"],
                as_responses(batch["response"]),
            )
            return {Columns.ACTION_DIST_INPUTS: logits, Columns.VF_PREDS: values}
        logits, values, state_out = self._unroll(batch)
        return {
            Columns.ACTION_DIST_INPUTS: logits,
            Columns.STATE_OUT: state_out,
            Columns.EMBEDDINGS: values,  # spares `compute_values` a second pass
        }

    @override(ValueFunctionAPI)
    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """(B, T) values."""
        if embeddings is None:
            _, embeddings, _ = self._unroll(batch)
        return embeddings

    @override(TargetNetworkAPI)
    def make_target_networks(self) -> None:
        """Called by learners that need one (APPO's), after the module is built."""
        self.target_network: Any = make_target_network(self.network)

    @override(TargetNetworkAPI)
    def get_target_network_pairs(self) -> list[tuple[AgentNetwork, AgentNetwork]]:
        return [(self.network, self.target_network)]

    @override(TargetNetworkAPI)
    def forward_target(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The target network's logits, (B, T, actions)."""
        logits, _, _ = self._unroll(batch, self.target_network)
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: logits}

    def _unroll(
        self, batch: dict[str, Any], network: AgentNetwork | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        network = self.network if network is None else network
        observation, state = batch[Columns.OBS], batch[Columns.STATE_IN]
        started = state[STARTED] > 0  # (B, 1)
        encoding, first = network.read(observation["context"][:, 0], observation["stage"][:, 0])
        hidden = torch.where(started, state[HIDDEN], first)
        logits, values, hidden = network.unroll_observed(
            observation["previous_token"], encoding, hidden, observation.get("response")
        )
        return logits, values, {HIDDEN: hidden, STARTED: torch.ones_like(state[STARTED])}


def build_network(model_config: dict[str, Any]) -> AgentNetwork:
    """The network that a model config describes (see `NetworkModule`).

    Raises:
        ValueError: it names no task, or something in it can't be.
    """
    if "task" not in model_config:
        raise ValueError("model_config names no task; expected {'task': 'calculator', ...}")
    chosen = network_class(model_config.get("network", DEFAULT_NETWORK))
    options = {name: model_config[name] for name in chosen.Options._fields if name in model_config}
    return chosen(get_task(model_config["task"]).interface, chosen.Options(**options))
