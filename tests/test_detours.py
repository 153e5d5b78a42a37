"""Detours against a plain loop: what they choose, when, and that a group makes the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.models.base import AgentNetwork, InitialState
from toolagent.rollouts.detours import FIRST_CHOICES, LONGEST, Detours, draw_detours
from toolagent.rollouts.explorers import ExplorersStep
from toolagent.rollouts.play import play
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ANS, NUM_TOKENS

TASK = get_task("expression")


class TableNetwork(AgentNetwork):
    """Logits by the step alone, whatever the problem: row t of a table."""

    def __init__(self, table: torch.Tensor):
        super().__init__(TASK.interface)
        self.table = table  # (T, 18)

    def begin(self, context, stage):
        return InitialState((), torch.zeros(len(context), 1))

    def step(self, table: Any, previous_token, encoding, hidden, response=None):
        return self.table[hidden[:, 0].long()], torch.zeros(len(hidden)), hidden + 1

    def unroll(self, previous_tokens, encoding, hidden):
        raise NotImplementedError("episodes are only played here")


def permuted_logits(seed, rows):
    """(rows, 18) logits without equals."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randperm(NUM_TOKENS, generator=generator).float() for _ in range(rows)]
    )


def nth_best(logits, n):
    """Slow and obvious: sorted by falling logit."""
    return sorted(range(NUM_TOKENS), key=lambda token: -float(logits[token]))[n]


def expected_token(logits, step, start, choices):
    """The n-th best on the detour, the best elsewhere."""
    on_detour = start <= step < start + len(choices)
    return nth_best(logits, choices[step - start] if on_detour else 0)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 16),
    episodes=st.lists(
        st.tuples(
            st.integers(0, 15),
            st.lists(st.integers(0, NUM_TOKENS - 1), min_size=LONGEST, max_size=LONGEST),
        ),
        min_size=1,
        max_size=6,
    ),
    data=st.data(),
)
def test_the_nth_best_token_on_the_detour_and_the_best_elsewhere(seed, step, episodes, data):
    rows = data.draw(st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=8))
    logits = permuted_logits(seed, len(rows))
    detours = Detours(
        torch.tensor([start for start, _ in episodes]),
        torch.tensor([choices for _, choices in episodes]),
    )
    assert len(detours) == len(episodes)
    drawn_by = detours.log_probabilities(
        ExplorersStep(TASK, step, np.array(rows), logits, registers=None, response=None)
    )
    assert (drawn_by.exp().sum(1) == 1).all()
    assert drawn_by.argmax(1).tolist() == [
        expected_token(logits[place], step, *episodes[row]) for place, row in enumerate(rows)
    ]


def test_a_drawn_detour_is_one_for_its_group_and_begins_before_the_last_action():
    longest, size = np.repeat(np.arange(1, 18), 400), 3
    detours = draw_detours(np.random.default_rng(0), longest, size, NUM_TOKENS)
    assert len(detours) == len(longest) * size
    start = detours.start.numpy().reshape(-1, size)
    choices = detours.choices.numpy().reshape(-1, size, LONGEST)
    assert (start == start[:, :1]).all() and (choices == choices[:, :1]).all()
    start, choices = start[:, 0], choices[:, 0]
    assert (choices[:, 0] > 0).all()  # or it would be none
    assert (choices >= 0).all() and (choices < NUM_TOKENS).all()
    for limit in range(3, 18):
        # The last action has the number limit - 1; all before it are begun with.
        assert set(start[longest == limit].tolist()) == set(range(limit - 1))
    assert not start[longest <= 2].any()
    # Any token is tried, and what the policy thinks likely more often than the rest.
    counts = np.bincount(choices[:, 0], minlength=NUM_TOKENS)
    likely, others = counts[1:FIRST_CHOICES], counts[FIRST_CHOICES:]
    assert (counts[1:] > 0).all() and likely.min() > 2 * others.max()
    # One to three steps, evenly: of the third steps a third is part of the detour (0 or not), of
    # the second ones two thirds.
    assert 0.2 < (choices[:, 2] > 0).mean() < 1 / 3 < 0.45 < (choices[:, 1] > 0).mean() < 2 / 3


def test_the_same_stream_draws_the_same_detours():
    one, same, other = (
        draw_detours(np.random.default_rng(seed), np.full(50, 9), 2, NUM_TOKENS)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.start, same.start) and torch.equal(one.choices, same.choices)
    assert not torch.equal(one.start, other.start)


def test_played_detours_are_those_of_a_plain_loop_while_others_leave_the_batch():
    rng = np.random.default_rng(0)
    stage = rng.integers(1, 9, 90).astype(np.int8)
    problems = TASK.sample(rng, stage)
    table = permuted_logits(3, TASK.max_actions)
    # The policy's rows end at many different steps, by chance; a greedy one never does before its
    # limit, but a detour may take any token, ANS among them.
    table[:, ANS] = table.max(1).values - 2.5
    detours = draw_detours(rng, TASK.action_limit(stage[30:]), 1, NUM_TOKENS)
    network = TableNetwork(table)
    batch = play(network, TASK, problems, torch.Generator().manual_seed(0), explorers=detours)
    assert batch.explored.tolist() == [False] * 30 + [True] * 60
    assert len(set(batch.lengths[:30].tolist())) > 5
    log_probabilities = torch.log_softmax(table, 1).numpy()
    for row in range(60):
        start, choices = int(detours.start[row]), detours.choices[row].tolist()
        actions, limit = [], 2 * int(stage[30 + row]) + 1
        while len(actions) < limit and ANS not in actions:
            step = len(actions)
            actions.append(expected_token(table[step], step, start, choices))
        length = len(actions)
        assert batch.lengths[30 + row] == length
        assert batch.actions[30 + row].tolist() == actions + [ANS] * (TASK.max_actions - length)
        # What the policy thinks of them, not the certainty with which they were played.
        np.testing.assert_allclose(
            batch.log_probabilities[30 + row, :length],
            log_probabilities[np.arange(length), actions],
            rtol=1e-5,
        )
    assert (batch.lengths[30:] < 2 * stage[30:] + 1).any()  # some left early too


def test_a_policy_that_plays_alone_is_not_changed_by_explorers_beside_it():
    """The policy's rows draw from the same stream, so the explorers' rows only come behind."""
    problems = TASK.sample(np.random.default_rng(0), np.full(20, 1, np.int8))
    network = TableNetwork(torch.zeros(TASK.max_actions, NUM_TOKENS))
    network.table[:, ANS] = -50.0  # nobody leaves, so the stream stays in step
    detours = Detours(torch.zeros(5, dtype=torch.int64), torch.ones(5, LONGEST).long())
    with_them, alone = (
        play(network, TASK, problems, torch.Generator().manual_seed(0), explorers=explorers)
        for explorers in (detours, None)
    )
    assert np.array_equal(with_them.actions[:15], alone.actions[:15])
    assert not np.array_equal(with_them.actions[15:], alone.actions[15:])


def test_greedy_play_has_no_explorers():
    problems = TASK.sample(np.random.default_rng(0), np.full(4, 2, np.int8))
    detours = Detours(torch.zeros(4, dtype=torch.int64), torch.ones(4, LONGEST).long())
    batch = play(TableNetwork(permuted_logits(0, 17)), TASK, problems, None, explorers=detours)
    assert not batch.explored.any()
    assert (batch.actions == batch.actions[0]).all()
