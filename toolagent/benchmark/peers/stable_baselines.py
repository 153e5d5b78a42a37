"""Stable-Baselines3 contrib's RecurrentPPO, with its own LSTM policy."""

# The library may be missing where types are checked, and its own types are loose.
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from toolagent.benchmark.peers import HIDDEN_SIZE
from toolagent.benchmark.peers.base import Peer, PeerEnvironment


class _VecEnv(VecEnv):
    """The environments at once, where `DummyVecEnv` would step N of them one by one."""

    def __init__(self, environment: PeerEnvironment):
        size = (environment.observation_size,)
        super().__init__(
            environment.num_envs,
            Box(0.0, 1.0, size, np.float32),
            Discrete(environment.num_actions),
        )
        self._environment = environment
        # Of an end there is nothing to say: no value is to be expected behind the action limit.
        self._infos: list[dict[str, Any]] = [{} for _ in range(environment.num_envs)]

    def reset(self) -> np.ndarray:
        """Observations (N, F)."""
        return self._environment.reset().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Acts in each episode."""
        observation, rewards, ended = self._environment.step(self._actions)
        return observation.numpy(), rewards, ended, self._infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """N times the attribute; there is no other than the render mode."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Nothing can be set."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """There are none."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None is."""
        return [False] * self.num_envs


class StableBaselines(Peer):
    """The row `sb3_recurrent_ppo`; `settings` are arguments of `RecurrentPPO`."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "num_envs": 256,
        "n_steps": 16,
        "batch_size": 1024,
        "n_epochs": 2,
        "learning_rate": 3e-3,
        "ent_coef": 0.01,
        "gamma": 1.0,
        "gae_lambda": 0.95,
    }
    state_size = 2 * HIDDEN_SIZE  # of the LSTM: hidden and cell state

    def __init__(self, environment: PeerEnvironment, settings: Mapping[str, Any], seed: int):
        arguments = {name: value for name, value in settings.items() if name != "num_envs"}
        self._model = RecurrentPPO(
            "MlpLstmPolicy",
            _VecEnv(environment),
            device="cpu",
            seed=seed,
            # From the LSTM straight to both heads, as in this project's network.
            policy_kwargs={
                "net_arch": [],
                "lstm_hidden_size": HIDDEN_SIZE,
                "shared_lstm": True,
                "enable_critic_lstm": False,
            },
            **arguments,
        )

    def update(self) -> int:
        """One rollout and its epochs."""
        before = self._model.num_timesteps
        self._model.learn(1, reset_num_timesteps=False)
        return self._model.num_timesteps - before

    def policy(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM policy (see `Peer`)."""
        hidden, cell = state.contiguous().split(HIDDEN_SIZE, 1)
        states = (hidden.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous())
        distribution, (hidden, cell) = self._model.policy.get_distribution(
            observation, states, torch.zeros(len(observation))
        )
        return distribution.distribution.logits, torch.cat([hidden[0], cell[0]], 1)


PEER = StableBaselines
