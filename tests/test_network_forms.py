"""Every form of a network that is run computes the same, whatever else is in the batch."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_forms import (
    CLOSE,
    FORMS,
    INTERFACE,
    Batch,
    as_episodes,
    close,
    counted,
    in_pieces,
    make_batch,
    perturbed,
    stepped,
    unrolled,
)

from toolagent.models.answer_attention import AnswerAttentionNetwork, AnswerAttentionOptions
from toolagent.models.call_stack import CallStackNetwork, CallStackOptions
from toolagent.models.encoder_decoder import EncoderDecoderNetwork, EncoderDecoderOptions
from toolagent.models.packing import one_of_each_run
from toolagent.models.recurrent import RecurrentNetwork, RecurrentOptions
from toolagent.tasks.tokens import ANS, CTX, EOS, NUM_TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")

PLANNER = EncoderDecoderOptions(embedding_size=6, num_heads=3, num_counters=2)
ATTENTION = AnswerAttentionOptions(embedding_size=6, context_size=5, num_heads=3)
# The network, its options, and how many tokens a tool answers with.
CASES = {
    # So wide that groups of episodes multiply their context before they look at it.
    "planner": (EncoderDecoderNetwork, PLANNER._replace(embedding_size=20), 0),
    "planner that sees digits": (EncoderDecoderNetwork, PLANNER._replace(sees_digits=True), 0),
    "planner, hinted": (EncoderDecoderNetwork, PLANNER._replace(reading="operands"), 0),
    "hinted, with one head": (EncoderDecoderNetwork, (6, 1, 0, "operands", True), 0),
    "planner, answered": (EncoderDecoderNetwork, PLANNER, 3),
    "attention to the context": (AnswerAttentionNetwork, ATTENTION, 0),
    "attention to answers": (AnswerAttentionNetwork, ATTENTION, 6),
    "attention to the last two": (AnswerAttentionNetwork, ATTENTION._replace(num_answers=2), 6),
    "attention to the last": (AnswerAttentionNetwork, (6, 5, 1, True, 1), 2),
    "recurrent": (RecurrentNetwork, RecurrentOptions(6, 5, 2), 6),
    "call stack": (CallStackNetwork, CallStackOptions(5, 4, 6, 3), 0),
    "call stack, answered": (CallStackNetwork, CallStackOptions(5, 4, 6, 3, 1, 2), 3),
}


@pytest.fixture(params=CASES)
def kind(request):
    """The name of a network with its options."""
    return request.param


def make_network(kind, seed=0):
    torch.manual_seed(seed)
    network, options, answered = CASES[kind]
    return perturbed(network(INTERFACE._replace(response_length=answered), options))


def batch_of(kind, seed, size, steps=6, group=1):
    return make_batch(seed, size, steps, group, CASES[kind][2])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    size=st.integers(1, 8),
    steps=st.integers(5, 9),
    group=st.integers(1, 3),
    kind=st.sampled_from(list(CASES)),
)
def test_all_forms_agree(seed, size, steps, group, kind):
    network, batch = make_network(kind, seed), batch_of(kind, seed, size, steps, group)
    expected = counted(unrolled, network, batch)
    for form in FORMS[1:]:
        for one, other in zip(counted(form, network, batch), expected, strict=True):
            close(one, other)
    for form in (in_pieces, stepped):
        close(form(network, batch)[2], unrolled(network, batch)[2])


def test_the_parts_of_the_state_are_all_of_it(kind):
    network = make_network(kind)
    parts = sorted((part.start, part.stop) for part in network.state_parts.values())
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == network.hidden_size


def test_the_learner_trains_every_parameter(kind):
    network, batch = make_network(kind), batch_of(kind, 2, 64)
    logits, values = network.unroll_episodes(*batch.columns)
    (logits.pow(2).mean() + values.pow(2).mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Nothing but the episode itself ------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), padding=st.integers(1, 20), kind=st.sampled_from(list(CASES)))
def test_more_padding_changes_nothing(form, seed, padding, kind):
    network, batch = make_network(kind), batch_of(kind, seed, 5)
    tail = torch.full((5, padding), EOS, dtype=torch.int8)
    longer = dataclasses.replace(batch, context=torch.cat([batch.context, tail], 1))
    for one, other in zip(form(network, batch), form(network, longer), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_an_episode_is_the_same_alone_and_with_any_neighbours_in_any_order(form, kind):
    network, batch = make_network(kind), batch_of(kind, 1, 12, group=2)
    together = form(network, batch)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = form(network, batch.take(order))
    for one, other in zip(together, shuffled, strict=True):
        close(one[order], other)
    for row in range(12):
        for one, alone in zip(together, form(network, batch.take([row])), strict=True):
            close(one[row : row + 1], alone)


def test_groups_of_equal_contexts_train_as_the_same_episodes_apart(kind):
    batch = batch_of(kind, 5, 12, group=4)
    apart = torch.arange(12).view(3, 4).t().flatten()  # no two equal contexts side by side
    assert one_of_each_run(batch.take(apart).context)[1] is None
    upstream = torch.randn(12, 6, NUM_TOKENS, generator=torch.Generator().manual_seed(0))
    gradients = []
    for order in (torch.arange(12), apart):
        network, episodes = make_network(kind), batch.take(order)
        logits, values = network.unroll_episodes(*episodes.columns)
        ((logits * upstream[order]).sum() + values.sum()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(*(g[name] for g in gradients), atol=1e-4, rtol=1e-4)


def test_what_stands_after_the_end_changes_nothing(kind):
    network, batch = make_network(kind), batch_of(kind, 2, 8)
    context, stage, actions, lengths, *responses = batch.columns
    other = torch.where(batch.alive, actions, torch.tensor(7, dtype=torch.int8))
    for answered in responses:
        answered[~batch.alive] = 3
    changed = network.unroll_episodes(context, stage, other, lengths, *responses)
    for one, two in zip(as_episodes(network, batch), changed, strict=True):
        close(one, two)


@pytest.mark.parametrize("form", FORMS)
def test_the_stage_changes_nothing(form, kind):
    """Stages of longer expressions than any in training are no news to it."""
    network, batch = make_network(kind), batch_of(kind, 4, 6)
    other = dataclasses.replace(batch, stage=batch.stage.flip(0) + 100)
    for one, two in zip(form(network, batch), form(network, other), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("row", [[], [CTX], [7, CTX], [CLOSE, CTX]])
def test_the_shortest_contexts_give_finite_numbers_and_gradients(row, kind):
    network, answered = make_network(kind), CASES[kind][2]
    context = torch.full((2, 30), EOS, dtype=torch.int8)
    context[0, : len(row)] = torch.tensor(row)
    context[1] = CTX  # a neighbour as long as can be
    tokens = torch.tensor([[CTX, 7, ANS]]).repeat(2, 1)
    responses = torch.full((2, 3, answered), EOS) if answered else None
    batch = Batch(context, torch.tensor([1, 1]), tokens, torch.tensor([3, 2]), responses)
    for form in FORMS:
        assert all(torch.isfinite(part).all() for part in form(network, batch))
    logits, values = network.unroll_episodes(*batch.columns)
    (logits.sum() + values.sum()).backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:  # answers that nobody got are not looked at
            assert torch.isfinite(parameter.grad).all(), name
