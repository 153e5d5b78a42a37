"""The replay of verified successes against a plain loop over episodes."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from toolagent.learning import verified_replay
from toolagent.learning.verified_replay import PEERS_AS_GOOD, VerifiedReplay
from toolagent.rollouts.episode_batch import empty_batch
from toolagent.tasks import get_task

TASK = get_task("expression")
CAPACITY = 16


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(verified_replay, "CAPACITY", CAPACITY)


def random_batch(rng, count, first=0):
    """Episodes with a number of their own in `actions`, and every mix of what counts."""
    problems = TASK.sample(rng, np.full(count, 2, np.int8))
    batch = empty_batch(TASK, problems.context, problems.stage)
    batch.actions[:, 0], batch.actions[:, 1] = np.divmod(np.arange(first, first + count), 100)
    batch.lengths[:] = rng.integers(1, 6, count)
    batch.explored[:] = rng.random(count) < 0.6
    batch.solved[:] = rng.random(count) < 0.6
    batch.rewards[np.arange(count), batch.lengths - 1] = batch.solved
    batch.baseline[:] = rng.integers(0, 8, count) / 7
    return batch


def name_of(batch, row):
    return 100 * int(batch.actions[row, 0]) + int(batch.actions[row, 1])


def names(batch):
    return [name_of(batch, row) for row in range(len(batch))]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_solved_explorers_whose_group_did_as_well_are_kept_and_the_oldest_make_way(seed, gamma):
    rng = np.random.default_rng(seed)
    replay, oracle, first = VerifiedReplay(np.random.default_rng(0), gamma), deque(), 0
    assert replay.sample(3) is None
    for _ in range(15):
        batch = random_batch(rng, int(rng.integers(1, 20)), first)
        replay.add(batch)
        for row in range(len(batch)):
            own = gamma ** (int(batch.lengths[row]) - 1) if batch.solved[row] else 0.0
            as_good = float(batch.baseline[row]) >= PEERS_AS_GOOD * own - 1e-6
            if batch.explored[row] and batch.solved[row] and as_good:
                oracle.append(first + row)
        while len(oracle) > CAPACITY:
            oracle.popleft()
        first += len(batch)
        assert len(replay) == len(oracle)
        if oracle:
            assert set(names(replay.sample(400))) == set(oracle)
    assert first > 8 * CAPACITY and len(oracle) == CAPACITY
    assert replay.sample(0) is None


def test_how_well_the_others_must_have_done():
    batch = random_batch(np.random.default_rng(0), 4)
    batch.explored[:] = batch.solved[:] = True
    batch.rewards[:] = 0
    batch.rewards[:, 0] = 1
    # Of seven others: four, five, none and all.
    batch.baseline[:] = np.array([4 / 7, 5 / 7, 0, 1], np.float32)
    replay = VerifiedReplay(np.random.default_rng(0))
    replay.add(batch)
    assert sorted(set(names(replay.sample(100)))) == [1, 3]


def test_all_columns_of_an_episode_are_kept():
    batch = random_batch(np.random.default_rng(0), 40)
    replay = VerifiedReplay(np.random.default_rng(0))
    replay.add(batch)
    batch_before = batch.take(np.arange(40))
    batch.rewards[:] = -1  # a batch that is used again changes nothing in the store
    drawn = replay.sample(30)
    for row in range(30):
        origin = name_of(drawn, row)
        for name, column in drawn.columns():
            assert np.array_equal(column[row], getattr(batch_before, name)[origin]), name


def test_episodes_are_drawn_evenly():
    replay = VerifiedReplay(np.random.default_rng(0))
    batch = random_batch(np.random.default_rng(1), 5)
    batch.explored[:] = batch.solved[:] = True
    batch.baseline[:] = 1
    replay.add(batch)
    counts = np.bincount(names(replay.sample(10_000)), minlength=5)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_state_round_trip():
    rng = np.random.default_rng(0)
    first, second = (VerifiedReplay(np.random.default_rng(seed)) for seed in (1, 2))
    second.set_state(first.get_state())
    assert second.sample(3) is None
    first.add(random_batch(rng, 30))
    second.set_state(first.get_state())
    for more in (random_batch(rng, 30, 100), random_batch(rng, 30, 200)):
        first.add(more)
        second.add(more)
        assert names(first.sample(50)) == names(second.sample(50))
    # Each has a store of its own.
    second.add(random_batch(rng, 200, 300))
    assert max(names(first.sample(500))) < 300
