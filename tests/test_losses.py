"""The losses against values worked out by hand, and against each other where one is the other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.learning.losses import (
    approx_kl,
    explained_variance,
    policy_loss,
    policy_step,
)
from toolagent.learning.returns import masked_mean, step_mask

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


def test_the_divergence_and_the_explained_variance_against_plain_numpy():
    rng = np.random.default_rng(0)
    new, old, values, targets = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(4))
    mask = rng.random((6, 4)) < 0.7
    ratio = np.exp((new - old)[mask])
    tensors = [torch.from_numpy(array) for array in (new, old, mask, values, targets)]
    divergence = approx_kl(*tensors[:3])
    assert float(divergence) == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), rel=1e-4)
    assert float(approx_kl(tensors[0], tensors[0], tensors[2])) == 0.0
    _, _, where, v, target = tensors
    expected = 1 - np.var((targets - values)[mask]) / np.var(targets[mask])
    assert float(explained_variance(v, target, where)) == pytest.approx(expected, rel=1e-3)
    assert float(explained_variance(target, target, where)) == 1.0
    assert torch.isnan(explained_variance(v, torch.ones_like(v), where))
