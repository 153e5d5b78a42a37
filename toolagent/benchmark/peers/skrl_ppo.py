"""skrl's PPO_RNN, with a GRU that policy and value share."""

# The library may be missing where types are checked, and its own types are loose.
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from skrl.agents.torch.ppo import PPO_RNN
from skrl.memories.torch import RandomMemory
from skrl.models.torch import (
    CategoricalMixin,
    DeterministicMixin,
    Model,
)
from torch import Tensor, nn

from toolagent.benchmark.peers import HIDDEN_SIZE
from toolagent.benchmark.peers.base import Peer, PeerEnvironment


class _Model(CategoricalMixin, DeterministicMixin, Model):
    """A GRU and two heads, after the shared recurrent models in skrl's examples."""

    def __init__(self, observations: Box, actions: Discrete, num_envs: int, steps: int):
        Model.__init__(self, observation_space=observations, action_space=actions, device="cpu")
        CategoricalMixin.__init__(self, role="policy")
        DeterministicMixin.__init__(self, role="value")
        self._num_envs, self._steps = num_envs, steps
        self.gru = nn.GRU(observations.shape[0], HIDDEN_SIZE, batch_first=True)
        self.policy_head = nn.Linear(HIDDEN_SIZE, int(actions.n))
        self.value_head = nn.Linear(HIDDEN_SIZE, 1)
        self._shared: tuple[Tensor, Tensor] | None = None  # of `policy`, for `value`

    def get_specification(self) -> dict[str, Any]:
        """Length of the learned sequences, and the shape of the recurrent state."""
        sizes = [(1, self._num_envs, HIDDEN_SIZE)]
        return {"rnn": {"sequence_length": self._steps, "sizes": sizes}}

    def act(self, inputs: dict[str, Any], *, role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Actions or values."""
        mixin = CategoricalMixin if role == "policy" else DeterministicMixin
        return mixin.act(self, inputs, role=role)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        """Logits or values (B, ...), and the new state."""
        if role == "value" and self._shared is not None:
            (outputs, state), self._shared = self._shared, None
        else:
            outputs, state = self._unroll(inputs)
            self._shared = (outputs, state) if role == "policy" else None
        head = self.policy_head if role == "policy" else self.value_head
        return head(outputs), {"rnn": [state]}

    def _unroll(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        observations, state = inputs["observations"], inputs["rnn"][0]
        if not self.training:
            outputs, state = self.gru(observations.unsqueeze(1), state)
            return outputs.squeeze(1), state
        # Sequences of `_steps` steps one after the other; the state before each step is given.
        observations = observations.view(-1, self._steps, observations.shape[-1])
        state = state.view(1, -1, self._steps, HIDDEN_SIZE)[:, :, 0].contiguous()
        ended = (inputs["terminated"] | inputs["truncated"]).view(-1, self._steps)
        cuts = (ended[:, :-1].any(0).nonzero().squeeze(1) + 1).tolist()
        outputs = []
        for begin, end in zip([0, *cuts], [*cuts, self._steps], strict=True):
            part, state = self.gru(observations[:, begin:end], state)
            state = state * ~ended[:, end - 1, None]
            outputs.append(part)
        return torch.cat(outputs, 1).flatten(0, 1), state


class Skrl(Peer):
    """The row `skrl_ppo_rnn`; `settings` are those of `PPO_CFG`."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "num_envs": 640,
        "rollouts": 8,
        "mini_batches": 4,
        "learning_epochs": 1,
        "learning_rate": 3e-3,
        "entropy_loss_scale": 0.03,
        "discount_factor": 1.0,
        "gae_lambda": 0.95,
        "grad_norm_clip": 1.0,
        "value_loss_scale": 0.5,
        "value_clip": 0.0,
    }
    state_size = HIDDEN_SIZE

    def __init__(self, environment: PeerEnvironment, settings: Mapping[str, Any], seed: int):
        options = {name: value for name, value in settings.items() if name != "num_envs"}
        self._environment, self._steps = environment, int(settings["rollouts"])
        observations = Box(0.0, 1.0, (environment.observation_size,), np.float32)
        actions = Discrete(environment.num_actions)
        self._model = _Model(observations, actions, environment.num_envs, self._steps)
        # It writes nothing; it only wants to know where.
        nowhere = {"directory": tempfile.gettempdir(), "write_interval": 0}
        self._agent = PPO_RNN(
            models={"policy": self._model, "value": self._model},
            memory=RandomMemory(memory_size=self._steps, num_envs=environment.num_envs),
            observation_space=observations,
            action_space=actions,
            device="cpu",
            cfg={**options, "experiment": {**nowhere, "checkpoint_interval": 0}},
        )
        self._agent.init()
        self._agent.enable_training_mode(True)
        self._observation = environment.reset()

    def update(self) -> int:
        """A rollout, step by step as skrl's trainers do it; the last step starts the epochs."""
        for step in range(self._steps):
            clock: dict[str, int] = {"timestep": step, "timesteps": self._steps}
            with torch.no_grad():
                self._agent.pre_interaction(**clock)
                actions, _ = self._agent.act(self._observation, None, **clock)
                observation, rewards, ended = self._environment.step(actions.squeeze(1).numpy())
                terminated = torch.from_numpy(ended).unsqueeze(1)
                self._agent.record_transition(
                    observations=self._observation,
                    states=None,
                    actions=actions,
                    rewards=torch.from_numpy(rewards).unsqueeze(1),
                    next_observations=observation,
                    next_states=None,
                    terminated=terminated,
                    truncated=torch.zeros_like(terminated),
                    infos={},
                    **clock,
                )
                self._observation = observation
            self._agent.post_interaction(**clock)
        return self._steps * self._environment.num_envs

    @torch.no_grad()
    def policy(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The GRU's policy (see `Peer`)."""
        outputs, last = self._model.gru(observation.unsqueeze(1), state.unsqueeze(0).contiguous())
        return self._model.policy_head(outputs.squeeze(1)), last[0]


PEER = Skrl
