"""What a batch of episodes can't be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trained import untrained_network

from toolagent.learning.faults import fault_in
from toolagent.rollouts.play import play
from toolagent.tasks import get_task


@pytest.fixture
def batch():
    task, rng = get_task("calculator"), np.random.default_rng(0)
    problems = task.sample(rng, rng.integers(0, 3, 20).astype(np.int8))
    return play(untrained_network(), task, problems, torch.Generator().manual_seed(0))


def test_what_was_played_has_no_fault(batch):
    assert fault_in(batch) is None


@pytest.mark.parametrize("column", ["rewards", "log_probabilities", "baseline"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_are_finite(batch, column, value):
    getattr(batch, column).reshape(-1)[-1] = value
    assert fault_in(batch) == f"{column} that are no finite numbers"


@pytest.mark.parametrize("length", [0, -1, 8])
def test_lengths_are_possible(batch, length):
    batch.lengths[3] = length
    assert fault_in(batch) == "episodes of other than 1 to 7 actions"


def test_a_batch_has_episodes(batch):
    assert fault_in(batch.take(np.zeros(20, bool))) is not None
