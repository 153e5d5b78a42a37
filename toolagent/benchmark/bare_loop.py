"""The reference for what a core can do: rollout and update in one plain PyTorch loop, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from toolagent.envs.vector import draw_stages
from toolagent.learning.losses import policy_step
from toolagent.learning.returns import (
    generalized_advantages,
    masked_mean,
    normalize,
    step_mask,
)
from toolagent.models.base import as_responses
from toolagent.models.fused_gru import without_kernels
from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.tasks import get_task


class BareLoop:
    """On-policy actor-critic on one thread, with the network and the losses of the product.

    Rollouts are `rollouts.play`, as everywhere, but without the compiled kernels of `fused_gru`.
    The update is what a PyTorch user would write: `nn.GRU` over padded sequences, autograd,
    `torch.optim.Adam`, gradient norm clipped. It has no metrics, no checkpoints, no exploration
    bonus and no replay.

    Args:
        task: a name.
        stage: of the episodes.
        earlier_stage_share: share of episodes from earlier stages.
        training: the `training` section of a config; what it leaves out is as in the class
            `ToolAgentConfig`.
        embedding_size: of the network.
        seed: of weights, problems and actions.
    """

    def __init__(
        self,
        task: str,
        stage: int,
        earlier_stage_share: float,
        training: Mapping[str, Any],
        embedding_size: int = 96,
        seed: int = 0,
    ):
        self.task, self.stage = get_task(task), stage
        self.earlier_stage_share = earlier_stage_share
        self.episodes = int(training.get("episodes_per_update", 512))
        self.clip = training.get("clip_param", 0.2)
        self.normalize_advantages = bool(training.get("normalize_advantages", True))
        self.vf_loss_coeff = float(training.get("vf_loss_coeff", 0.5))
        self.entropy_coeff = float(training.get("entropy_coeff", 0.01))
        self.grad_clip = float(training.get("grad_clip", 1.0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = StageGRUNetwork(self.task.interface, (embedding_size,))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=float(training["lr"]))
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def update(self) -> tuple[int, int]:
        """Plays a batch and learns from it: env steps and episodes of the batch."""
        with without_kernels():
            return self._update()

    def _update(self) -> tuple[int, int]:
        stages = draw_stages(
            self.rng, self.episodes, self.stage, self.earlier_stage_share, self.task.first_stage
        )
        problems = self.task.sample(self.rng, stages)
        batch = play(self.network, self.task, problems, self.generator)
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.grad_clip)
        self.optimizer.step()
        return batch.env_steps, len(batch)

    def loss(self, batch: EpisodeBatch) -> torch.Tensor:
        """The pipeline's loss, over padded sequences."""
        steps = int(batch.lengths.max())
        actions = torch.from_numpy(batch.actions[:, :steps])  # (B, T)
        previous, observed = self.network.shifted(actions, as_responses(batch.response[:, :steps]))
        encoding, hidden = self.network.read(
            torch.from_numpy(batch.context), torch.from_numpy(batch.stage)
        )
        logits, values, _ = self.network.unroll_observed(previous, encoding, hidden, observed)
        mask = step_mask(torch.from_numpy(batch.lengths), steps)  # (B, T)
        advantages, targets = generalized_advantages(
            torch.from_numpy(batch.rewards[:, :steps]), values, mask, 1.0, 1.0
        )
        if self.normalize_advantages:
            advantages = normalize(advantages, mask)
        step = policy_step(logits, actions)
        policy, _ = policy_loss(
            step.log_probabilities,
            torch.from_numpy(batch.log_probabilities[:, :steps]),
            advantages,
            mask,
            self.clip,
        )
        value_loss = masked_mean((values - targets).square(), mask)
        entropy = masked_mean(step.entropy, mask)
        return policy + self.vf_loss_coeff * value_loss - self.entropy_coeff * entropy


def policy_loss(
    log_probabilities: torch.Tensor,
    behaviour_log_probabilities: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy-gradient loss, and the share of steps where clipping took the gradient away (see
    `toolagent.learning.losses.actor_critic_loss`)."""
    if clip is None:
        return -masked_mean(log_probabilities * advantages, mask), torch.zeros(())
    ratio = torch.exp((log_probabilities - behaviour_log_probabilities) * mask)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    share = masked_mean((clipped < unclipped).float(), mask)
    return -masked_mean(torch.min(unclipped, clipped), mask), share
