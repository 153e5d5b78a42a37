"""The losses against values worked out by hand, and the learner's, whose gradients are written
out, against the plain ones and autograd."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.benchmark.bare_loop import policy_loss
from toolagent.learning.algorithm import ToolAgentConfig
from toolagent.learning.losses import actor_critic_loss, policy_step
from toolagent.learning.returns import (
    generalized_advantages,
    leave_one_out_advantages,
    masked_mean,
    normalize,
    step_mask,
)

ALL = torch.ones(1, 2, dtype=torch.bool)


def random_steps(seed, size=5, steps=4, actions=6):
    """Logits (B, T, A), actions, behaviour log-probabilities, advantages and mask (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, steps, actions, generator=generator)
    taken = torch.randint(0, actions, (size, steps), generator=generator)
    behaviour = -torch.rand(size, steps, generator=generator) * 3
    advantages = torch.randn(size, steps, generator=generator)
    lengths = torch.randint(1, steps + 1, (size,), generator=generator)
    return logits, taken, behaviour, advantages, step_mask(lengths, steps)


def test_log_probabilities_and_entropies_of_a_known_policy():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]]))
    step = policy_step(logits + 7.0, torch.tensor([[1, 2]], dtype=torch.int8))
    torch.testing.assert_close(
        step.log_probabilities, torch.tensor([[math.log(0.25), math.log(1 / 3)]])
    )
    # 0.5 ln 2 + 2 * 0.25 ln 4 = 1.5 ln 2
    torch.testing.assert_close(step.entropy, torch.tensor([[1.5 * math.log(2), math.log(3)]]))


def test_the_plain_loss_by_hand():
    log_probabilities = torch.tensor([[-1.0, -2.0]])
    loss, share = policy_loss(
        log_probabilities, torch.full((1, 2), 99.0), torch.tensor([[3.0, -1.0]]), ALL, None
    )
    assert float(loss) == pytest.approx(-((-1 * 3) + (-2 * -1)) / 2)
    assert float(share) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [
        (1.5, 2.0, 1.2 * 2.0, True),  # better than expected, and already much more probable
        (1.5, -2.0, 1.5 * -2.0, False),  # worse, and more probable: the full way back
        (0.5, 2.0, 0.5 * 2.0, False),
        (0.5, -2.0, 0.8 * -2.0, True),  # worse, and already much less probable
        (1.1, 2.0, 1.1 * 2.0, False),
    ],
)
def test_the_clipped_loss_by_hand(ratio, advantage, objective, clipped):
    behaviour = torch.tensor([[-2.0]])
    now = (behaviour + math.log(ratio)).requires_grad_()
    loss, share = policy_loss(
        now, behaviour, torch.tensor([[advantage]]), torch.ones(1, 1, dtype=torch.bool), 0.2
    )
    assert float(loss) == pytest.approx(-objective, rel=1e-5)
    assert float(share) == float(clipped)
    loss.backward()
    assert float(now.grad) == pytest.approx(0.0 if clipped else -ratio * advantage, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), clip=st.floats(0.05, 0.9))
def test_on_policy_the_clipped_loss_has_the_gradient_of_the_plain_one(seed, clip):
    logits, taken, _, advantages, mask = random_steps(seed)
    gradients = []
    for setting in (None, clip):
        leaf = logits.clone().requires_grad_()
        log_probabilities = policy_step(leaf, taken).log_probabilities
        loss, share = policy_loss(
            log_probabilities, log_probabilities.detach(), advantages, mask, setting
        )
        loss.backward()
        gradients.append(leaf.grad)
        assert float(share) == 0
    torch.testing.assert_close(*gradients)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_wide_clip_is_importance_sampling(seed):
    logits, taken, behaviour, advantages, mask = random_steps(seed)
    log_probabilities = policy_step(logits, taken).log_probabilities
    loss, share = policy_loss(log_probabilities, behaviour, advantages, mask, 1e9)
    expected = -masked_mean((log_probabilities - behaviour).exp() * advantages, mask)
    torch.testing.assert_close(loss, expected)
    assert float(share) == 0


@pytest.mark.parametrize("clip", [None, 0.2])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), garbage=st.floats(-1e3, 1e3))
def test_padding_has_no_loss_and_no_gradient(clip, seed, garbage):
    logits, taken, behaviour, advantages, mask = random_steps(seed)
    results = []
    for padding in (0.0, garbage):

        def padded(data, padding=padding):
            return torch.where(mask.view(*mask.shape, *[1] * (data.ndim - 2)), data, padding)

        # Logits of the padding all alike would hide a gradient through the softmax.
        leaf = torch.where(mask.unsqueeze(-1), logits, padding * torch.arange(6.0) / 6)
        leaf.requires_grad_()
        step = policy_step(leaf, torch.where(mask, taken, int(abs(padding)) % 6))
        loss, share = policy_loss(
            step.log_probabilities, padded(behaviour), padded(advantages), mask, clip
        )
        loss = loss + masked_mean(step.entropy, mask)
        loss.backward()
        assert (leaf.grad[~mask] == 0).all()
        results.append((loss.detach(), share, leaf.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


# The learner's loss ----------------------------------------------------------------------------


def random_batch(seed, size=7, steps=5, actions=6):
    """Logits, values, and the columns of a batch, a part of it replayed."""
    logits, taken, _, rewards, mask = random_steps(seed, size, steps, actions)
    rng = np.random.default_rng(seed)
    now = policy_step(logits, taken).log_probabilities
    numbers = torch.from_numpy(rng.normal(size=(3, size, steps)).astype(np.float32))
    batch = {
        "lengths": mask.sum(1).to(torch.int8),
        "actions": taken.to(torch.int8),
        "rewards": rewards,
        # Some of the ratios are within the clip, some beyond it.
        "log_probabilities": now + 0.3 * numbers[0],
        "baseline": numbers[1, :, 0],
        "entropy_weight": numbers[1, :, 1].abs(),
        "replayed": torch.from_numpy(rng.random(size) < 0.3),
    }
    return logits, numbers[2], batch


def plain_loss(logits, values, batch, config):
    """The same loss of plain parts, for autograd."""
    happened = step_mask(batch["lengths"], logits.shape[1])
    replayed = happened & batch["replayed"].unsqueeze(1)
    mask, rewards, gamma = happened & ~replayed, batch["rewards"], config.gamma
    advantages, targets = generalized_advantages(rewards, values, mask, gamma, config.lambda_)
    if config.advantage_estimator == "leave_one_out":
        advantages = leave_one_out_advantages(rewards, batch["baseline"], mask, gamma)
    if config.normalize_advantages:
        advantages = normalize(advantages, mask)
    step = policy_step(logits, batch["actions"])
    log_probabilities, behaviour = step.log_probabilities, batch["log_probabilities"]
    policy, share = policy_loss(log_probabilities, behaviour, advantages, mask, config.clip_param)
    value = masked_mean((values - targets).square(), mask)
    bonus = masked_mean(step.entropy * batch["entropy_weight"].unsqueeze(1), mask)
    surplus, _ = generalized_advantages(rewards, values, replayed, gamma, 1.0)
    imitation = masked_mean(-log_probabilities * surplus.clamp(min=0), replayed)
    loss = (
        policy
        + config.vf_loss_coeff * value
        - config.entropy_coeff * bonus
        + config.replay_coeff * imitation
    )
    old, now = behaviour[mask].numpy(), log_probabilities[mask].detach().numpy()
    rest, target = (targets - values)[mask].detach().numpy(), targets[mask].numpy()
    divergence = np.mean(np.exp(now - old) - 1 - (now - old))
    explained = 1 - np.var(rest) / np.var(target) if np.var(target) > 0 else math.nan
    entropy = masked_mean(step.entropy, mask)
    return loss, lambda: (policy, value, entropy, imitation, share, divergence, explained)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_param": None, "max_staleness": 0},
        {"advantage_estimator": "leave_one_out", "normalize_advantages": False},
        {"gamma": 0.9, "lambda_": 0.8, "entropy_coeff": 0.5, "vf_loss_coeff": 2.0},
    ],
    ids=["default", "plain A2C", "leave one out", "discounted"],
)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_written_gradients_are_those_of_autograd(options, seed):
    config = ToolAgentConfig().training(replay_coeff=0.5, **options)
    logits, values, batch = random_batch(seed)
    results = []
    for loss_of in (actor_critic_loss, plain_loss):
        leaves = [logits.clone().requires_grad_(), values.clone().requires_grad_()]
        loss, parts = loss_of(*leaves, batch, config)
        (3 * loss).backward()
        results.append([loss, *parts(), *(leaf.grad for leaf in leaves)])
    for written, plain in zip(*results, strict=True):
        torch.testing.assert_close(
            written,
            torch.as_tensor(plain, dtype=torch.float32),
            atol=2e-5,
            rtol=1e-3,
            equal_nan=True,
        )


def test_a_critic_without_error_explains_everything_and_the_same_policy_has_no_divergence():
    logits, _, batch = random_batch(0)
    batch["replayed"][:] = False
    mask = step_mask(batch["lengths"], logits.shape[1])
    _, targets = generalized_advantages(batch["rewards"], torch.zeros(mask.shape), mask, 1.0, 1.0)
    batch["log_probabilities"] = policy_step(logits, batch["actions"]).log_probabilities
    config = ToolAgentConfig()
    _, parts = actor_critic_loss(logits, targets, batch, config)
    found = parts()
    assert float(found.explained_variance) == pytest.approx(1.0, abs=1e-6)
    assert float(found.approximate_kl) == float(found.clipped_share) == 0.0
    nothing = {**batch, "rewards": 0 * targets}
    _, parts = actor_critic_loss(logits, 0 * targets, nothing, config)
    assert torch.isnan(parts().explained_variance)  # all targets are the same
