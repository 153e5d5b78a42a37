"""Counting programs in columns, against a plain count of texts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from trained import noisy_network

from toolagent.rollouts.play import play
from toolagent.rollouts.programs import programs_of
from toolagent.tasks import get_task
from toolagent.tasks.tokens import EOS, VOCABULARY

TASK = get_task("calculator")


def test_programs_are_counted_as_a_plain_loop_counts_them():
    problems = TASK.sample(np.random.default_rng(0), np.full(400, 2, np.int8))
    generator = torch.Generator().manual_seed(0)
    batch = play(noisy_network(0.1), TASK, problems, generator)
    texts = [VOCABULARY.text(a[:n]) for a, n in zip(batch.actions, batch.lengths, strict=True)]
    counted = Counter(texts)
    assert len(counted) > 3  # a probe with something to tell apart
    record = programs_of(TASK, batch.actions, batch.solved, batch.lengths).record()
    assert counted[record["program"]] == max(counted.values())
    assert record["share"] == max(counted.values()) / 400
    assert record["distinct"] == len(counted)
    for name in TOOLS:
        share = sum(name in text.split() for text in texts) / 400
        assert record["tools"].get(name, 0) == pytest.approx(share, abs=1e-4)
    solved = [n for n, right in zip(batch.lengths, batch.solved, strict=True) if right]
    assert record["solved_length"] == (pytest.approx(np.mean(solved), 1e-4) if solved else None)


TOOLS = ("MUL", "ADD", "SUB", "STO", "RCL", "ANS")


def test_what_stands_after_the_end_does_not_count():
    stop = VOCABULARY.names.index("ANS")
    actions = np.array([[11, stop, EOS], [11, stop, EOS], [12, 12, 12]], np.int8)
    found = programs_of(
        get_task("calculator"),
        actions,
        np.array([True, False, False]),
        np.array([2, 2, 3], np.int8),
    )
    assert found.record() == {
        "program": "MUL ANS",
        "share": 0.6667,
        "distinct": 2,
        "tools": {"MUL": 0.6667, "ADD": 0.3333, "ANS": 0.6667},
        "solved_length": 2.0,
    }
    with pytest.raises(ValueError, match="no episodes"):
        programs_of(TASK, actions[:0], np.zeros(0, bool), np.zeros(0, np.int8))
