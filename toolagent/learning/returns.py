"""Returns and advantages of whole episodes, as pure functions of columns.

Shapes: B episodes, T steps. `mask` (B, T) is True where an action was taken in a live episode;
an episode's steps are a prefix of its row. What stands in the other places never counts.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional


def step_mask(lengths: Tensor, steps: int) -> Tensor:
    """(B, T) bool: step t of episode b happened, t < lengths[b]."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the value targets that belong to them.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1},
        target_t = A_t + V_t

    with V = A = 0 behind an episode's last step: `ANS` ends it, and so does the last allowed
    action (the limit is a rule of the task, not a cut of the recording; nothing is bootstrapped).
    With lambda = 1 the target is the discounted return to go.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", eq. 16.

    Args:
        rewards: (B, T) float.
        values: (B, T) float; detached here, no gradient flows through an advantage.
        mask: (B, T) bool.
        gamma: discount, 0..1.
        lambda_: trace decay, 0..1.

    Returns:
        advantages (B, T) and targets (B, T), both 0 outside the mask.
    """
    if rewards.shape != values.shape or rewards.shape != mask.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask "
            f"{tuple(mask.shape)} must have one shape (B, T)"
        )
    values = values.detach() * mask
    following = functional.pad(values[:, 1:], (0, 1))  # V_{t+1}
    # Where a step did not happen, rewards and values are 0, and so is what is behind it.
    deltas = rewards * mask + gamma * following - values
    advantages = discounted_sums(deltas, gamma * lambda_) * mask
    return advantages, advantages + values


def discounted_sums(data: Tensor, rate: float) -> Tensor:
    """(B, T): at step t of (B, T) data, the sum over k >= t of rate^(k - t) data_k."""
    return data @ _discounts(data.shape[1], rate, data.dtype, data.device)


@functools.lru_cache(maxsize=16)
def _discounts(steps: int, rate: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(T, T): rate^(k - t) in row k and column t <= k, 0 elsewhere."""
    step = torch.arange(steps, dtype=dtype, device=device)
    return (rate ** (step.unsqueeze(1) - step).clamp(min=0)).tril()


def leave_one_out_advantages(
    rewards: Tensor, baseline: Tensor, mask: Tensor, gamma: float
) -> Tensor:
    """How much better an episode went than the others of the same problem.

        A_t = R - mean of the other episodes' R,  R = sum over t of gamma^t r_t

    the same at every step of an episode, R being its return from the start: with gamma < 1 a
    program is the better the shorter it is.

    The baseline accounts for how hard the problem is without a value function. Where all episodes
    of a group have the same return, the advantage is 0.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!".

    Args:
        rewards: (B, T) float.
        baseline: (B,) float, the mean return of the others, discounted likewise.
        mask: (B, T) bool.
        gamma: discount, 0..1.

    Returns:
        (B, T), 0 outside the mask.
    """
    discount = gamma ** torch.arange(rewards.shape[1], device=rewards.device)  # (T,)
    returns = (rewards * mask * discount).sum(1)  # (B,)
    return (returns - baseline).unsqueeze(1) * mask


def masked_mean(data: Tensor, mask: Tensor) -> Tensor:
    """The mean over the places under the mask; 0 if there are none."""
    return (data * mask).sum() / mask.sum().clamp(min=1)


def normalize(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the mask, 0 outside it."""
    mean = masked_mean(advantages, mask)
    centred = (advantages - mean) * mask
    variance = masked_mean(centred.square(), mask)
    return centred / (variance.sqrt() + 1e-6)
