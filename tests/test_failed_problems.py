"""The ring of failed problems against a plain list of texts."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from toolagent.rollouts import failed_problems
from toolagent.rollouts.failed_problems import FAILED_BELOW, FailedProblems
from toolagent.tasks import get_task
from toolagent.tasks.infix import texts_of

TASK = get_task("expression")
CAPACITY, ENOUGH, STAGE = 24, 6, 3


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(failed_problems, "CAPACITY", CAPACITY)
    monkeypatch.setattr(failed_problems, "ENOUGH", ENOUGH)


def sample(rng, count, low=STAGE, high=STAGE):
    return TASK.sample(rng, rng.integers(low, high + 1, count).astype(np.int8))


def texts(problems):
    return texts_of(problems.context).tolist()


def kept(ring, stage=STAGE):
    """The texts of what is in the ring, in any order."""
    state = ring.get_state()
    assert state["stage"] == stage
    return sorted(texts(state["ring"].take(np.arange(len(ring))))) if len(ring) else []


def mastered(rng, steps=200):
    """A ring full of failed problems of an agent that solves all fresh ones."""
    ring = FailedProblems()
    for _ in range(steps):
        fresh = np.arange(10) < 5
        ring.add(sample(rng, 10), np.where(fresh, 1.0, 0.0), fresh, STAGE)
    return ring


@pytest.mark.parametrize("seed", range(4))
def test_the_latest_failed_problems_of_the_stage_are_kept_and_nothing_else(seed):
    rng, ring = np.random.default_rng(seed), FailedProblems()
    oracle = deque(maxlen=CAPACITY)
    for _ in range(40):
        problems = sample(rng, int(rng.integers(1, 15)), low=1)
        solved = rng.choice([0.0, 0.125, 0.5, 0.625, 1.0], len(problems))
        ring.add(problems, solved, rng.random(len(problems)) < 0.5, STAGE)
        for row, text in enumerate(texts(problems)):
            if problems.stage[row] == STAGE and solved[row] <= FAILED_BELOW:
                oracle.append(text)
        assert len(ring) == len(oracle)
        assert kept(ring) == sorted(oracle)
    assert len(oracle) == CAPACITY  # it did go round
    drawn = ring.sample(2000, STAGE, rng)
    assert set(texts(drawn)) == set(oracle) and (drawn.stage == STAGE).all()


def test_what_is_kept_is_a_copy():
    rng, ring = np.random.default_rng(0), FailedProblems()
    problems = sample(rng, 10)
    before = sorted(texts(problems))
    ring.add(problems, np.zeros(10), np.ones(10, bool), STAGE)
    problems.put(np.arange(10), sample(rng, 10))
    assert kept(ring) == before
    ring.sample(5, STAGE, rng).context[:] = 0
    assert kept(ring) == before


def test_a_new_stage_empties_the_ring():
    rng = np.random.default_rng(0)
    ring = mastered(rng)
    assert len(ring) == CAPACITY
    other = STAGE + 1
    assert ring.sample(3, other, rng) is None and len(ring) == 0
    ring = mastered(rng)
    problems = sample(rng, 40, low=other, high=other)
    before = texts(problems)
    assert ring.mix_in(problems, 40, other, 1.0, rng).all() and texts(problems) == before
    ring = mastered(rng)
    ring.add(problems, np.zeros(40), np.ones(40, bool), other)
    assert set(kept(ring, other)) <= set(before)
    # What was solved of the stage before is forgotten too: nothing is mixed in yet.
    assert ring.mix_in(problems, 40, other, 1.0, rng).all()


def test_few_failed_problems_are_not_drawn_from():
    rng, ring = np.random.default_rng(0), FailedProblems()
    assert ring.sample(1, STAGE, rng) is None
    for count in range(1, ENOUGH + 1):
        ring.add(sample(rng, 1), np.zeros(1), np.zeros(1, bool), STAGE)
        assert (ring.sample(2, STAGE, rng) is None) == (count < ENOUGH)
    assert len(ring.sample(2, STAGE, rng)) == 2


@pytest.mark.parametrize("solved", [0.0, 0.25, 1.0])
def test_the_share_grows_with_the_share_of_fresh_problems_that_are_solved(solved):
    rng, ring = np.random.default_rng(0), FailedProblems()
    moving = 0.0
    for _ in range(60):
        fresh = np.arange(20) < 12
        # Those from the ring are always failed: they are no measure.
        ring.add(sample(rng, 20), np.where(fresh, solved, 0.0), fresh, STAGE)
        moving += 0.05 * (solved - moving)
    problems = sample(rng, 20_000)
    still_fresh = ring.mix_in(problems, 20_000, STAGE, 0.6, rng)
    expected = 0.6 * moving
    assert abs((~still_fresh).mean() - expected) <= 5 * np.sqrt(expected / 20_000)
    assert solved < 1 or 0.5 < (~still_fresh).mean() < 0.6


def test_only_the_first_problems_and_those_of_the_stage_are_replaced():
    rng = np.random.default_rng(0)
    ring, problems = mastered(rng), sample(rng, 300, low=2)
    before, in_ring = texts(problems), set(kept(ring))
    still_fresh = ring.mix_in(problems, 200, STAGE, 1.0, rng)
    after = texts(problems)
    assert len(still_fresh) == 200
    assert after[200:] == before[200:]
    for row in range(200):
        if still_fresh[row]:
            assert after[row] == before[row]
        else:
            assert problems.stage[row] == STAGE and after[row] in in_ring
    assert 50 < (~still_fresh).sum() < 150  # half of them are of the stage
    earlier = sample(rng, 100, low=1, high=2)
    assert ring.mix_in(earlier, 100, STAGE, 1.0, rng).all()


def test_a_replaced_problem_is_whole():
    """Every column moves: a context with another problem's target would teach nonsense."""
    rng = np.random.default_rng(0)
    ring, problems = mastered(rng), sample(rng, 100)
    ring.mix_in(problems, 100, STAGE, 1.0, rng)
    again = TASK.pose(None, expression=texts(problems))
    for (name, one), (_, other) in zip(problems.columns(), again.columns(), strict=True):
        assert np.array_equal(one, other), name


def test_a_restored_ring_goes_on_exactly_and_by_itself():
    rng = np.random.default_rng(0)
    first, second = mastered(rng), FailedProblems()
    state = first.get_state()
    outcomes = []
    for ring in (first, second):
        if ring is second:
            second.set_state(state)  # the first has gone on meanwhile
        stream, seen = np.random.default_rng(5), []
        for _ in range(5):
            problems = sample(stream, 30)
            still_fresh = ring.mix_in(problems, 25, STAGE, 0.8, stream)
            ring.add(problems.take(np.arange(25)), stream.random(25), still_fresh, STAGE)
            seen += [texts(problems), still_fresh.tolist(), kept(ring)]
            seen.append(texts(ring.sample(4, STAGE, stream)))
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]
    empty = FailedProblems()
    empty.set_state(FailedProblems().get_state())
    assert len(empty) == 0
