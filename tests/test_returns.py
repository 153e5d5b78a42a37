"""Returns and advantages against a slow scalar oracle, number by number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.learning.returns import (
    generalized_advantages,
    leave_one_out_advantages,
    masked_mean,
    normalize,
    step_mask,
)

unit = st.floats(0, 1, width=32)
batches = st.integers(0, 2**32 - 1)


def random_batch(seed, size=6, steps=5):
    """Rewards and values (B, T) full of numbers, after the ends too, and lengths >= 1."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, size, steps, dtype=torch.float64, generator=generator)
    lengths = torch.randint(1, steps + 1, (size,), generator=generator)
    return rewards, values, lengths


def oracle(rewards, values, gamma, lambda_):
    """One episode in plain Python: A_t as the sum of discounted temporal-difference errors."""
    length = len(rewards)
    deltas = [
        rewards[t] + (gamma * values[t + 1] if t + 1 < length else 0.0) - values[t]
        for t in range(length)
    ]
    return [
        sum((gamma * lambda_) ** (k - t) * deltas[k] for k in range(t, length))
        for t in range(length)
    ]


@settings(max_examples=60, deadline=None)
@given(seed=batches, gamma=unit, lambda_=unit)
def test_advantages_are_the_oracle_s(seed, gamma, lambda_):
    rewards, values, lengths = random_batch(seed)
    advantages, targets = generalized_advantages(
        rewards, values, step_mask(lengths, 5), gamma, lambda_
    )
    for row, length in enumerate(lengths.tolist()):
        expected = oracle(
            rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lambda_
        )
        np.testing.assert_allclose(advantages[row, :length], expected, atol=1e-9)
        np.testing.assert_allclose(
            targets[row, :length], np.add(expected, values[row, :length]), atol=1e-9
        )
        assert (advantages[row, length:] == 0).all() and (targets[row, length:] == 0).all()


def test_hand_derived_values():
    # r = (1, 2), V = (3, 5), gamma = 1/2, lambda = 1/2:
    # A_1 = 2 - 5 = -3;  A_0 = (1 + 5/2 - 3) + 1/4 * -3 = -1/4.
    advantages, targets = generalized_advantages(
        torch.tensor([[1.0, 2.0, 9.0]]),
        torch.tensor([[3.0, 5.0, 7.0]]),
        torch.tensor([[True, True, False]]),
        0.5,
        0.5,
    )
    assert advantages.tolist() == [[-0.25, -3.0, 0.0]]
    assert targets.tolist() == [[2.75, 2.0, 0.0]]


@settings(max_examples=30, deadline=None)
@given(seed=batches, gamma=unit, lambda_=unit, garbage=st.floats(-1e6, 1e6))
def test_nothing_after_the_end_has_any_influence(seed, gamma, lambda_, garbage):
    rewards, values, lengths = random_batch(seed)
    mask = step_mask(lengths, 5)
    clean = generalized_advantages(rewards, values, mask, gamma, lambda_)
    dirty = generalized_advantages(
        torch.where(mask, rewards, garbage),
        torch.where(mask, values, garbage),
        mask,
        gamma,
        lambda_,
    )
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)


def test_no_gradient_flows_through_an_advantage_or_a_target():
    rewards, values, lengths = random_batch(0)
    values.requires_grad_()
    advantages, targets = generalized_advantages(rewards, values, step_mask(lengths, 5), 0.9, 0.9)
    assert not advantages.requires_grad and not targets.requires_grad


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"rewards \(2, 3\).*must have one shape"):
        generalized_advantages(
            torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool), 1.0, 1.0
        )


# Leave one out -------------------------------------------------------------------------------


def episode_return(rewards, gamma):
    """One episode in plain Python."""
    return sum(gamma**step * reward for step, reward in enumerate(rewards))


def groups_of(seed, groups, size):
    """Rewards (B, T) and lengths of `groups` groups of `size` episodes."""
    rewards, _, lengths = random_batch(seed, size=groups * size)
    return rewards, lengths


def peers_of(rewards, lengths, size, gamma):
    """Each episode's return, and (B,) the mean return of its group's others, by a loop."""
    returns = [
        episode_return(row[:length], gamma)
        for row, length in zip(rewards.tolist(), lengths.tolist(), strict=True)
    ]
    peers = []
    for row in range(len(returns)):
        first = row // size * size
        others = [returns[other] for other in range(first, first + size) if other != row]
        peers.append(sum(others) / len(others))
    return returns, torch.tensor(peers, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(seed=batches, groups=st.integers(1, 4), size=st.integers(2, 5), gamma=unit)
def test_leave_one_out_advantages_are_those_of_a_loop_over_the_others(seed, groups, size, gamma):
    rewards, lengths = groups_of(seed, groups, size)
    returns, peers = peers_of(rewards, lengths, size, gamma)
    advantages = leave_one_out_advantages(rewards, peers, step_mask(lengths, 5), gamma)
    for row, length in enumerate(lengths.tolist()):
        first = row // size * size
        others = [returns[other] for other in range(first, first + size) if other != row]
        expected = returns[row] - sum(others) / (size - 1)
        np.testing.assert_allclose(advantages[row, :length], expected, atol=1e-6)
        assert (advantages[row, length:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=batches, garbage=st.floats(-1e6, 1e6))
def test_nothing_after_the_end_is_part_of_a_leave_one_out_advantage(seed, garbage):
    rewards, lengths = groups_of(seed, 2, 3)
    mask = step_mask(lengths, 5)
    peers = torch.arange(6.0, dtype=torch.float64)
    clean = leave_one_out_advantages(rewards, peers, mask, 0.9)
    dirty = leave_one_out_advantages(torch.where(mask, rewards, garbage), peers, mask, 0.9)
    assert torch.equal(clean, dirty)


def test_leave_one_out_advantages_by_hand():
    # Returns 1, 0, 0, 1: the others' means are 1/3, 2/3, 2/3, 1/3. Discounted by 1/2, what is won
    # at the second step is worth 1/2.
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 9.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    advantages = leave_one_out_advantages(rewards, torch.tensor([1, 2, 2, 1]) / 3, mask, 1.0)
    expected = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [-2.0, 0.0], [2.0, 0.0]]) / 3
    torch.testing.assert_close(advantages, expected)
    halved = leave_one_out_advantages(rewards, torch.zeros(4), mask, 0.5)
    assert halved.tolist() == [[0.5, 0.5], [0, 0], [0, 0], [1.0, 0]]


def test_the_mask_is_a_prefix_of_each_row():
    assert step_mask(torch.tensor([0, 1, 3], dtype=torch.int8), 3).tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, True],
    ]


def test_a_masked_mean_counts_what_is_under_the_mask():
    data = torch.tensor([[1.0, 2.0], [6.0, 1e9]])
    mask = torch.tensor([[True, True], [True, False]])
    assert float(masked_mean(data, mask)) == 3.0
    assert float(masked_mean(data, torch.zeros(2, 2, dtype=torch.bool))) == 0.0


@settings(max_examples=30, deadline=None)
@given(seed=batches)
def test_normalised_advantages_have_mean_zero_and_deviation_one(seed):
    data, _, lengths = random_batch(seed, size=20)
    mask = step_mask(lengths, 5)
    result = normalize(7 * data + 3, mask)
    assert (result[~mask] == 0).all()
    assert float(result[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(result[mask].std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    # The order stays, and a shift and a scale make no difference.
    torch.testing.assert_close(result, normalize(data, mask), atol=1e-4, rtol=0)


def test_equal_advantages_are_all_normalised_to_zero():
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert normalize(torch.full((2, 3), 5.0), mask).abs().max() == 0
