"""What episodes have in common is computed once, and comes out as if it were not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_forms import INTERFACE, make_batch, perturbed

from toolagent.models.answer_attention import AnswerAttentionNetwork, AnswerAttentionOptions
from toolagent.models.fused_gru import FusedGRU
from toolagent.models.network import StageGRUNetwork
from toolagent.models.packed_gru import PackedGRU
from toolagent.models.packing import pack, pack_episodes, unpack, unpack_heads
from toolagent.rollouts.play import Intervention, play
from toolagent.tasks import get_task

pytestmark = pytest.mark.usefixtures("one_thread")

batches = st.builds(
    lambda seed, groups, steps, group, answered: make_batch(
        seed, groups * group, steps, group, answered
    ),
    seed=st.integers(0, 2**20),
    groups=st.integers(1, 8),
    steps=st.integers(1, 7),
    group=st.sampled_from([2, 4, 8]),
    answered=st.sampled_from([0, 2]),
)


def packing_of(batch):
    return pack_episodes(batch.context, batch.stage, batch.tokens, batch.lengths, batch.responses)


def histories(batch):
    """(row, step) -> all that was observed up to that step, of every step that there is."""
    found, problem, number = {}, None, 0
    for row, length in enumerate(batch.lengths.tolist()):
        before, problem = problem, (*batch.context[row].tolist(), int(batch.stage[row]))
        number += problem != before  # only those side by side are compared
        for step in range(length):
            seen = batch.tokens[row, : step + 1].tolist()
            if batch.responses is not None:
                seen += batch.responses[row, : step + 1].flatten().tolist()
            found[row, step] = (number, tuple(seen))
    return found


@settings(max_examples=60, deadline=None)
@given(batch=batches)
def test_steps_are_shared_just_where_all_that_was_observed_is_the_same(batch):
    packing, expected = packing_of(batch), histories(batch)
    rows, steps = batch.tokens.shape
    numbers = torch.arange(1.0, len(packing.place) + 1).unsqueeze(1)
    padded = unpack(numbers, packing, rows, steps)[..., 0]
    assert torch.equal(padded > 0, batch.alive)
    step_of = {}
    for place, history in expected.items():
        assert step_of.setdefault(int(padded[place]), history) == history
    assert len(step_of) == len(set(expected.values())) == len(packing.place)
    assert sum(packing.sizes) == len(packing.place)
    # A packed step's place is one of those that share it, and it follows the step of its parent.
    times = torch.repeat_interleave(torch.tensor(packing.sizes))
    firsts = np.cumsum([0, *packing.sizes])
    for number, (place, time) in enumerate(
        zip(packing.place.tolist(), times.tolist(), strict=True)
    ):
        row, step = divmod(place, steps)
        assert step == time and padded[row, step] == number + 1
        if time:
            parent = int(packing.parents[time - 1][number - firsts[time]]) + firsts[time - 1]
            assert padded[row, step - 1] == parent + 1
        else:
            assert padded[packing.order[number], 0] == number + 1


def test_where_few_are_alike_nothing_is_looked_for():
    batch = make_batch(0, 12)
    assert packing_of(batch).parents is None


@pytest.mark.parametrize(
    ("gru", "dtype", "close"),
    [(PackedGRU, torch.float64, 1e-10), (FusedGRU, torch.float32, 2e-4)],
)
@settings(max_examples=25, deadline=None)
@given(batch=batches, width=st.integers(1, 20))
def test_a_gru_over_a_tree_is_one_over_each_episode(gru, dtype, close, batch, width):
    generator = torch.Generator().manual_seed(width)

    def some(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, steps = batch.tokens.shape
    # Episodes of a problem begin in one state.
    first = some(2**10, width)[(batch.context.double().sum(1).long() * 16 + batch.stage) % 2**10]
    leaves = [some(24, 3 * width), some(3 * width, width) / width**0.5, some(3 * width), first]
    extra = some(24, 3 * width)[batch.tokens]  # (B, T, 3D), by the token
    upstream = some(rows, steps, width) * batch.alive.unsqueeze(-1)
    results = []
    for packing in (packing_of(batch), pack(batch.lengths, steps)):
        given_ = [leaf.to(dtype, copy=True).requires_grad_() for leaf in (*leaves, extra)]
        outputs = gru.apply(
            *given_[:3],
            given_[3][packing.order],
            batch.tokens.flatten()[packing.place].int(),
            packing.sizes,
            given_[4].flatten(0, 1)[packing.place],
            None,
            packing.parents,
        )
        padded = unpack(outputs, packing, rows, steps)
        (padded * upstream.to(dtype)).sum().backward()
        weights = [leaf.grad for leaf in given_[:3]]
        # Which of the episodes that share something gets its gradient does not matter.
        of_first = [given_[3].grad.sum(0), given_[4].grad.sum((0, 1))]
        results.append([padded.detach(), *weights, *of_first])
    for ours, theirs in zip(*results, strict=True):
        size = 1 + theirs.abs().max()
        torch.testing.assert_close(ours / size, theirs / size, atol=close, rtol=0)


def stage_gru(task):
    return perturbed(StageGRUNetwork(task.interface, (12,)))


def answer_attention(task):
    return perturbed(AnswerAttentionNetwork(task.interface, AnswerAttentionOptions(12, 6, 2)))


@pytest.mark.parametrize("make", [stage_gru, answer_attention])
def test_networks_train_as_without_sharing(make):
    torch.manual_seed(0)
    task = get_task("toolcall")
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    problems = task.sample(rng, rng.integers(0, 4, 20).astype(np.int8))
    network = make(task)
    played = play(network, task, problems.take(np.repeat(np.arange(20), 6)), generator)
    columns = [
        torch.from_numpy(column.astype(np.int64))
        for column in (played.context, played.stage, played.actions, played.lengths)
    ]
    responses = torch.from_numpy(played.response)
    upstream = torch.randn(*played.actions.shape, task.interface.num_actions, generator=generator)
    rows = torch.arange(120).view(20, 6)
    results = []
    for order in (rows.flatten(), rows.t().flatten()):  # side by side, and apart
        network.zero_grad(set_to_none=True)
        logits, values = network.unroll_episodes(*(c[order] for c in columns), responses[order])
        ((logits * upstream[order]).sum() + values.sum()).backward()
        back = order.argsort()
        gradients = [
            parameter.grad for parameter in network.parameters() if parameter.grad is not None
        ]
        results.append([logits[back].detach(), values[back].detach(), *gradients])
    for ours, theirs in zip(*results, strict=True):
        size = 1 + theirs.abs().max()
        torch.testing.assert_close(ours / size, theirs / size, atol=2e-5, rtol=0)


class Nothing(Intervention):
    """Leaves all as it is: so that each episode has a state of its own."""


class CountingNetwork(StageGRUNetwork):
    """Counts the rows of its steps."""

    rows = 0

    def step(self, table, previous_token, encoding, hidden, response=None):
        self.rows += len(previous_token)
        return super().step(table, previous_token, encoding, hidden, response)


@pytest.mark.parametrize("name", ["calculator", "toolcall"])
@pytest.mark.parametrize("group", [1, 2, 8])
def test_play_computes_each_state_once_and_plays_the_same(name, group):
    torch.manual_seed(0)
    task = get_task(name)
    network = perturbed(CountingNetwork(task.interface, (12,)))
    rng = np.random.default_rng(0)
    problems = task.sample(rng, rng.integers(0, 3, 24).astype(np.int8))
    problems = problems.take(np.repeat(np.arange(24), group))

    def rows_and_episodes(**more):
        network.rows = 0
        played = play(network, task, problems, torch.Generator().manual_seed(1), **more)
        return network.rows, played

    shared, episodes = rows_and_episodes()
    alone, expected = rows_and_episodes(intervention=Nothing())
    for column in ("actions", "lengths", "rewards", "response", "solved"):
        np.testing.assert_array_equal(getattr(episodes, column), getattr(expected, column))
    np.testing.assert_allclose(
        episodes.log_probabilities, expected.log_probabilities, atol=1e-5, rtol=0
    )
    distinct, problem, number = set(), None, 0
    for row, length in enumerate(episodes.lengths):
        before, problem = problem, (*problems.context[row], problems.stage[row])
        number += problem != before
        for step in range(length):
            seen = (*episodes.actions[row, :step], *episodes.response[row, :step].flat)
            distinct.add((number, step, seen))
    assert alone == episodes.lengths.sum()
    assert shared == (alone if group == 1 else len(distinct))


def test_no_key_of_a_state_is_too_large():
    """Long responses of a large vocabulary make more combinations than an integer holds."""
    from toolagent.rollouts.live_states import LiveStates

    interface = INTERFACE._replace(response_length=40)
    states = LiveStates(
        perturbed(StageGRUNetwork(interface, (4,))),
        np.ones((8, 9), np.int8),
        np.ones(8, np.int8),
        interface.vocabulary.start_token,
        np.full((8, 40), interface.vocabulary.pad_token, np.int8),
    )
    logits, _ = states.step()
    assert len(states.hidden) == 1 and len(logits) == 8
    answers = np.zeros((8, 40), np.int8)
    answers[3:, 0], answers[5, 39] = 7, 1  # three different ones
    states.go_on(torch.full((8,), 5), answers, np.arange(8))
    states.step()
    assert len(states.hidden) == 3


@settings(max_examples=25, deadline=None)
@given(batch=batches, seed=st.integers(0, 1000))
def test_heads_are_unpacked_as_by_slices(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, steps = batch.tokens.shape
    for packing in (packing_of(batch), pack(batch.lengths, steps)):
        heads = torch.randn(len(packing.place), 9, generator=generator, dtype=torch.float64)
        upstream = torch.randn(rows, steps, 6, generator=generator, dtype=torch.float64)
        results = []
        for by_slices in (False, True):
            given_ = heads.clone().requires_grad_()
            if by_slices:
                padded = unpack(given_, packing, rows, steps)
                logits, values = padded[..., :5], padded[..., 5]
            else:
                logits, values = unpack_heads(given_, packing, 5, rows, steps)
            ((logits * upstream[..., :5]).sum() + (values * upstream[..., 5]).sum()).backward()
            results.append((logits.detach(), values.detach(), given_.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
