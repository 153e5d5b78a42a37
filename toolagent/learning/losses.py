"""The actor-critic loss, its gradients written out (see `returns` for the shapes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolagent.learning.returns import (
    discounted_sums,
    generalized_advantages,
    leave_one_out_advantages,
    masked_mean,
    normalize,
    step_mask,
)


class PolicyStep(NamedTuple):
    """What a policy thinks of the actions that were taken."""

    log_probabilities: Tensor  # (B, T) of the actions
    entropy: Tensor  # (B, T) of the whole distribution, in nats


def policy_step(logits: Tensor, actions: Tensor) -> PolicyStep:
    """Log-probabilities and entropies from (B, T, A) logits and (B, T) actions."""
    all_log = torch.log_softmax(logits, -1)  # (B, T, A)
    chosen = all_log.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
    return PolicyStep(chosen, -(all_log.exp() * all_log).sum(-1))


class LossParts(NamedTuple):
    """What `actor_critic_loss` is the sum of, without the weights, and what else is logged of it.

    All are of no dimension and without a gradient.
    """

    policy: Tensor
    value: Tensor
    entropy: Tensor  # in nats
    imitation: Tensor
    clipped_share: Tensor  # of the steps: clipping took the policy loss's gradient away
    approximate_kl: Tensor  # of the policy that played from the present one, in nats
    explained_variance: Tensor  # of the targets, by the critic


@torch.no_grad()
def actor_critic_loss(
    logits: Tensor, values: Tensor, batch: dict[str, Tensor], config: Any
) -> tuple[Tensor, Callable[[], LossParts]]:
    """The loss of `EpisodeColumnsLearner`, as documented there, and its parts.

    The policy loss is over what the present policy (or a recent one, mu) played. With A the
    advantages and rho = pi(a) / mu(a):

        clip_param None:  - mean(log pi(a) A)                       (REINFORCE with a baseline)
        otherwise:        - mean(min(rho A, clamp(rho, 1 - clip, 1 + clip) A))

    With data of the current policy (rho = 1) both have the same gradient; with older data the
    second corrects for its age and bounds the step.

    The imitation loss is over what is replayed. With R the return to go, it makes successes more
    probable where they went better than expected:

        mean(- log pi(a) max(0, R - V)),  no gradient through R - V

    Two figures are logged only: mean(rho - 1 - log rho), an estimate of KL(mu || pi) which is
    never negative, and the explained variance 1 - Var(target - V) / Var(target), 1 for a perfect
    critic, 0 for one no better than a constant, NaN where all targets are the same.

    Autograd takes five times as long for the hundred small operations of all this. So the
    gradients are computed here, from those by log pi(a) and by the entropy H:

        d log pi(a) / d logits = 1(a) - pi,    d H / d logits = - pi (log pi + H)

    Sources: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7; Oh et al.
    2018, "Self-imitation learning", eq. 2; Schulman 2020, "Approximating KL divergence", k3.

    Args:
        logits: (B, T, A).
        values: (B, T).
        batch: the columns that learners get.
        config: a `ToolAgentConfig`.

    Returns:
        The loss, of which `backward` sends the gradients on to `logits` and `values`; and what
        computes its parts, which few updates are asked for.
    """
    rewards, clip = batch["rewards"], config.clip_param
    happened = step_mask(batch["lengths"], logits.shape[1]).to(values.dtype)  # (B, T)
    played = happened * ~batch["replayed"].unsqueeze(1)
    replayed = happened - played
    steps, replayed_steps = played.sum().clamp(min=1), replayed.sum().clamp(min=1)

    residuals, targets = generalized_advantages(  # residuals: target - V
        rewards, values, played, config.gamma, config.lambda_
    )
    advantages = residuals
    if config.advantage_estimator == "leave_one_out":
        advantages = leave_one_out_advantages(rewards, batch["baseline"], played, config.gamma)
    if config.normalize_advantages:
        advantages = normalize(advantages, played)
    surplus = discounted_sums(rewards * replayed, config.gamma) - values * replayed
    surplus.clamp_(min=0)

    log_policy = torch.log_softmax(logits, -1)  # (B, T, A)
    probabilities = log_policy.exp()
    entropy = -(probabilities * log_policy).sum(-1)  # (B, T)
    actions = batch["actions"].long().unsqueeze(-1)  # (B, T, 1)
    chosen = log_policy.gather(-1, actions).squeeze(-1)  # (B, T)
    moved = (chosen - batch["log_probabilities"]) * played  # log rho
    beyond = torch.expm1(moved)  # rho - 1, exact near 0
    if clip is None:
        policy, clipped_steps = -(chosen * advantages).sum() / steps, torch.zeros_like(steps)
        d_chosen = -advantages / steps
    else:
        unclipped = (beyond + 1) * advantages
        clipped = (beyond.clamp(-clip, clip) + 1) * advantages
        cut = clipped < unclipped
        policy, clipped_steps = -torch.min(unclipped, clipped).sum() / steps, cut.sum()
        d_chosen = unclipped.masked_fill(cut, 0.0) / -steps
    imitation = -(chosen * surplus).sum() / replayed_steps
    d_chosen -= surplus * (config.replay_coeff / replayed_steps)
    value = residuals.square().sum() / steps
    weights = batch["entropy_weight"].unsqueeze(1) * played * (config.entropy_coeff / steps)
    loss = (
        policy
        + config.vf_loss_coeff * value
        - (entropy * weights).sum()
        + config.replay_coeff * imitation
    )
    # By the logits: (1(a) - pi) d_chosen + pi (log pi + H) weights.
    shared = (entropy * weights - d_chosen).unsqueeze(-1)
    d_logits = torch.addcmul(shared, log_policy, weights.unsqueeze(-1)).mul_(probabilities)
    d_logits.scatter_add_(-1, actions, d_chosen.unsqueeze(-1))
    d_values = residuals * (-2 * config.vf_loss_coeff / steps)

    def parts() -> LossParts:
        variance = _variance(targets, played)
        return LossParts(
            policy=policy,
            value=value,
            entropy=masked_mean(entropy, played),
            imitation=imitation,
            clipped_share=clipped_steps / steps,
            approximate_kl=(beyond - moved).sum() / steps,
            explained_variance=torch.where(
                variance > 0, 1 - _variance(residuals, played) / variance, torch.nan
            ),
        )

    with torch.enable_grad():
        return _KnownGradients.apply(loss, logits, values, d_logits, d_values), parts


def _variance(data: Tensor, mask: Tensor) -> Tensor:
    return masked_mean((data - masked_mean(data, mask)).square(), mask)


class _KnownGradients(torch.autograd.Function):
    """A number, and its gradients by two tensors, which are known already."""

    @staticmethod
    def forward(
        ctx: Any, number: Tensor, one: Tensor, other: Tensor, by_one: Tensor, by_other: Tensor
    ) -> Tensor:
        ctx.save_for_backward(by_one, by_other)
        return number.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        by_one, by_other = ctx.saved_tensors
        return None, gradient * by_one, gradient * by_other, None, None
