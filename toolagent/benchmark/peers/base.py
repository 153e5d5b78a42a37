"""What every peer shares: the environment as it sees it, and how its policy is certified.

Shapes: N environments, B episodes, F the width of an observation, S of a recurrent state.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from toolagent.envs.vector import ToolVectorEnv
from toolagent.models.base import AgentNetwork, Encoding, InitialState
from toolagent.vocabulary import Interface


def encode_problem(interface: Interface, context: Tensor, stage: Tensor) -> Tensor:
    """Context (B, L) and stage (B,), int64, as one-hot vectors side by side: (B, ...) float32."""
    tokens = functional.one_hot(context, interface.context_vocabulary).flatten(1)
    return torch.cat([tokens, functional.one_hot(stage, interface.num_stages)], 1).float()


def encode_token(interface: Interface, previous_token: Tensor) -> Tensor:
    """The previous token (B,), int64, as a one-hot vector: (B, ...) float32."""
    return functional.one_hot(previous_token, interface.vocabulary.num_previous_tokens).float()


class PeerEnvironment:
    """N environments at once, with what a learner of flat vectors needs.

    An observation is (N, F) float32: context, stage and previous token, each one-hot, as
    Stable-Baselines3 and RLlib encode such spaces. An episode that ended is replaced within the
    same step, so every step is an env step.

    Args:
        task: a name.
        num_envs: N.
        seed: of the problems.
        earlier_stage_share: share of episodes from earlier stages.
    """

    def __init__(self, task: str, num_envs: int, seed: int, earlier_stage_share: float):
        self.vector_env = ToolVectorEnv(num_envs, task, earlier_stage_share=earlier_stage_share)
        self.task = self.vector_env.task
        self.num_envs = num_envs
        self._seed: int | None = seed
        self.observation_size = self.reset().shape[1]
        self.num_actions = self.task.vocabulary.num_actions

    def reset(self) -> Tensor:
        """Starts N episodes: the observations (N, F)."""
        observation, _ = self.vector_env.reset(seed=self._seed)
        self._seed = None
        return self._flat(observation)

    def step(self, actions: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Acts in each episode.

        Args:
            actions: (N,) integers.

        Returns:
            observations (N, F), of a new episode where one ended; rewards (N,) float32; ends (N,)
            bool. The action limit is an end like `ANS`: nothing is to be expected after it.
        """
        observation, rewards, terminated, truncated, _ = self.vector_env.step(actions)
        ended = terminated | truncated
        if ended.any():
            observation, _ = self.vector_env.reset(options={"reset_mask": ended})
        return self._flat(observation), rewards.astype(np.float32), ended

    def _flat(self, observation: Mapping[str, np.ndarray]) -> Tensor:
        context, stage, token = (
            torch.from_numpy(observation[name]) for name in ("context", "stage", "previous_token")
        )
        interface = self.task.interface
        problem = encode_problem(interface, context, stage)
        return torch.cat([problem, encode_token(interface, token)], 1)


class Peer(abc.ABC):
    """A learner of another library; it goes on with an environment of its own.

    Args:
        environment: its episodes.
        settings: `SETTINGS`, or other values of the same names.
        seed: of weights and actions.
    """

    SETTINGS: ClassVar[dict[str, Any]]  # the best ones found (README.md tells how)
    state_size: int  # S

    @abc.abstractmethod
    def __init__(self, environment: PeerEnvironment, settings: Mapping[str, Any], seed: int): ...

    @abc.abstractmethod
    def update(self) -> int:
        """Plays a batch and learns from it, as the library does: the env steps of the batch."""

    @abc.abstractmethod
    def policy(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the policy as it is now.

        Args:
            observation: (B, F).
            state: (B, S), 0 before the first step.

        Returns:
            logits (B, A), state (B, S).
        """


class PeerNetwork(AgentNetwork):
    """A peer's policy, to be played and certified as any agent of this project is.

    Args:
        peer: its policy, as it is when played.
        interface: of the task.
    """

    def __init__(self, peer: Peer, interface: Interface):
        super().__init__(interface)
        self._peer = peer

    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """What is observed of the problem at every step, and a state of 0."""
        observed = encode_problem(self.interface, context, stage)
        return InitialState((observed,), torch.zeros(len(context), self._peer.state_size))

    def unroll(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step by step (see `AgentNetwork`); values are not asked for and 0."""
        logits = []
        for token in previous_tokens.unbind(1):
            observation = torch.cat([encoding[0], encode_token(self.interface, token)], 1)
            step, hidden = self._peer.policy(observation, hidden)
            logits.append(step)
        return torch.stack(logits, 1), torch.zeros(previous_tokens.shape), hidden
