"""The actor-critic losses, as pure functions of per-step columns (see `returns` for the shapes)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from toolagent.learning.returns import generalized_advantages, masked_mean


class PolicyStep(NamedTuple):
    """What a policy thinks of the actions that were taken."""

    log_probabilities: Tensor  # (B, T) of the actions
    entropy: Tensor  # (B, T) of the whole distribution, in nats


def policy_step(logits: Tensor, actions: Tensor) -> PolicyStep:
    """Log-probabilities and entropies from (B, T, A) logits and (B, T) actions."""
    all_log = torch.log_softmax(logits, -1)  # (B, T, A)
    chosen = all_log.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
    return PolicyStep(chosen, -(all_log.exp() * all_log).sum(-1))


def policy_loss(
    log_probabilities: Tensor,
    behaviour_log_probabilities: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """The policy-gradient loss, and the share of steps where clipping took the gradient away.

    clip None:  - mean(log pi(a) * A)                               (REINFORCE with a baseline)
    otherwise:  - mean(min(rho A, clamp(rho, 1 - clip, 1 + clip) A)),  rho = pi(a) / mu(a)

    With data of the current policy (rho = 1) both have the same gradient; with older data the
    second corrects for its age and bounds the step.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7.
    """
    if clip is None:
        return -masked_mean(log_probabilities * advantages, mask), torch.zeros(())
    ratio = torch.exp((log_probabilities - behaviour_log_probabilities) * mask)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    share = masked_mean((clipped < unclipped).float(), mask)
    return -masked_mean(torch.min(unclipped, clipped), mask), share


def approx_kl(
    log_probabilities: Tensor, behaviour_log_probabilities: Tensor, mask: Tensor
) -> Tensor:
    """How far the policy has moved from the one that played: an estimate of KL(mu || pi) in nats.

        mean(rho - 1 - log rho),  rho = pi(a) / mu(a), a drawn from mu

    Never negative, 0 where the two agree; no gradient. Source: Schulman 2020, "Approximating KL
    divergence", estimator k3.
    """
    log_ratio = (log_probabilities.detach() - behaviour_log_probabilities) * mask
    return masked_mean(torch.expm1(log_ratio) - log_ratio, mask)


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """How much of the targets' variance the critic accounts for: 1 - Var(target - V) / Var(target).

    1 is a perfect critic, 0 no better than a constant, below 0 worse; NaN where all targets are
    the same. No gradient.
    """
    values = values.detach()
    rest = targets - values
    left = masked_mean((rest - masked_mean(rest, mask)).square(), mask)
    variance = masked_mean((targets - masked_mean(targets, mask)).square(), mask)
    return torch.where(variance > 0, 1 - left / variance, torch.nan)


def imitation_loss(
    log_probabilities: Tensor, rewards: Tensor, values: Tensor, mask: Tensor, gamma: float
) -> Tensor:
    """Makes replayed successes more probable, where they went better than expected.

        mean(-log pi(a) * max(0, R - V)),  R the return to go, no gradient through R - V

    Source: Oh et al. 2018, "Self-imitation learning", eq. 2.
    """
    surplus, _ = generalized_advantages(rewards, values, mask, gamma, 1.0)
    return masked_mean(-log_probabilities * surplus.clamp(min=0), mask)
