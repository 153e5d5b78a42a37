"""The published tutorial's learner, for `rllib_configs/tutorial.yaml`: a baseline.

Two departures, both stated in the README: the context's mean is over the problem's own context
(the tutorial's ran over the batch), and nothing after `ANS` is learned from.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from torch import Tensor

from toolagent.learning.algorithm import ToolAgentConfig
from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.learning.losses import policy_step
from toolagent.learning.returns import step_mask


class TutorialLearner(EpisodeColumnsLearner):
    """Sums over whole episodes in place of per-step terms.

    With R the reward of an episode and sums over its steps,

        advantage = R - sum(V)            (no gradient through it)
        loss = mean(-sum(log pi) * advantage + vf_loss_coeff * (sum(V) - R)^2
                    - entropy_coeff * sum(entropy))

    Source: the published tutorial.
    """

    @override(TorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        logits, values = fwd_out[Columns.ACTION_DIST_INPUTS], fwd_out[Columns.VF_PREDS]
        mask = step_mask(batch["lengths"], logits.shape[1])  # (B, T)
        step = policy_step(logits, batch["actions"])
        reward = (batch["rewards"] * mask).sum(1)  # (B,)
        value = (values * mask).sum(1)  # (B,)
        advantage = reward - value.detach()
        policy = -((step.log_probabilities * mask).sum(1) * advantage).mean()
        value_loss = (value - reward).square().mean()
        entropy = (step.entropy * mask).sum(1).mean()
        self.metrics.log_dict(
            {
                POLICY_LOSS_KEY: policy.detach(),
                VF_LOSS_KEY: value_loss.detach(),
                ENTROPY_KEY: entropy.detach(),
            },
            key=module_id,
            window=1,
        )
        return policy + config.vf_loss_coeff * value_loss - config.entropy_coeff * entropy


class TutorialConfig(ToolAgentConfig):
    """The tutorial's numbers: 192 episodes an update, Adam 3e-4, gradient norm 1, no discount."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.episodes_per_update = 192
        self.num_envs_per_env_runner = 192
        self.updates_per_iteration = 1
        self.num_env_runners = 0
        self.lr = 3e-4
        self.max_staleness = 0
        self.clip_param = None

    @override(ToolAgentConfig)
    def get_default_learner_class(self) -> type:
        return TutorialLearner
