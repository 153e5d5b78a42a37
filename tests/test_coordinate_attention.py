"""Attention by place, against loops over single tokens; and the reading order that is given."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.models.coordinate_attention import CoordinateAttention
from toolagent.tasks import get_task
from toolagent.tasks.infix import VOCABULARY
from toolagent.tasks.tokens import ADD, CTX, EOS, MUL, NUM_TOKENS, SUB

pytestmark = pytest.mark.usefixtures("one_thread")


def make_attention(seed=0, heads=3, counters=2, learned=True):
    torch.manual_seed(seed)
    attention = CoordinateAttention(VOCABULARY, heads, counters, learned).double()
    with torch.no_grad():  # sharpness of both signs, preferences that are not all 0
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return attention


def contexts_of(rows):
    """(B, L) int8 of lists of tokens, EOS behind each."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[EOS] * (longest - len(row))] for row in rows], dtype=torch.int8)


def looked(attention, contexts, tokens, start=None):
    """(B, T, H, L) weights, as the network gets them."""
    contexts = contexts.long()
    coordinates, preference = attention.place_context(contexts, contexts != EOS)
    if start is None:
        start = attention.start.expand(len(contexts), -1)
    return attention.weights(attention.places(start, tokens), coordinates, preference)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_places_may_be_cut_in_the_middle_and_go_on(cut):
    attention = make_attention()
    tokens = torch.randint(0, NUM_TOKENS, (3, 5), generator=torch.Generator().manual_seed(0))
    whole = attention.places(attention.start.expand(3, -1), tokens)
    assert whole.shape == (3, 5, attention.width) == (3, 5, 3 + 2)
    head = attention.places(attention.start.expand(3, -1), tokens[:, :cut])
    tail = attention.places(head[:, -1], tokens[:, cut:])
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)


def test_without_training_the_heads_move_through_the_context_at_an_even_pace():
    """Every token counts about as much, so step t of writing looks about t tokens on."""
    torch.manual_seed(0)
    attention = CoordinateAttention(VOCABULARY, 4, 0)
    context = torch.randint(0, 10, (1, 20))
    weights = looked(attention, context, torch.randint(0, 10, (1, 12))).detach()[0]
    centre = (weights * torch.arange(20)).sum(-1)  # (T, H)
    for head in range(4):
        pace = np.polyfit(np.arange(12), centre[:, head].numpy(), 1)[0]
        assert 0.5 < pace < 2


# The reading order that is given --------------------------------------------------------------


def test_a_given_order_has_nothing_to_train_and_is_kept_with_the_weights():
    given_order = CoordinateAttention(VOCABULARY, 4, 4, learned=False)
    assert list(given_order.parameters()) == []
    learned = CoordinateAttention(VOCABULARY, 4, 4)
    assert given_order.state_dict().keys() == learned.state_dict().keys()
    assert {name for name, _ in learned.named_parameters()} == learned.state_dict().keys()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), operands=st.integers(1, 8), heads=st.integers(1, 5))
def test_heads_look_at_the_operands_around_the_first_not_yet_pushed(seed, operands, heads):
    """Whatever else is read and written: the next one, the one before, the one after, ...; and
    past the last operand, however far, at the context's end."""
    task, rng = get_task("expression"), np.random.default_rng(seed)
    context = torch.from_numpy(task.sample(rng, np.array([operands])).context)
    digit_at = [place for place, token in enumerate(context[0].tolist()) if token < 10]
    end_at = context[0].tolist().index(CTX)
    tokens = [CTX, *rng.integers(0, NUM_TOKENS, 12).tolist()]
    attention = make_attention(0, heads, 1, learned=False)
    weights = looked(attention, context, torch.tensor([tokens]))[0]
    offsets = [1, 0, 2, -1, 1]  # from the operand pushed last
    for step in range(len(tokens)):
        pushed = sum(token < 10 for token in tokens[: step + 1])
        for head in range(heads):
            wanted = pushed + offsets[head]  # the first operand is 1
            if 1 <= wanted <= operands:
                assert weights[step, head, digit_at[wanted - 1]] > 0.999
            elif wanted > operands:
                assert weights[step, head, end_at] > 0.999
            else:  # before the first operand: there, and never at the structure
                assert weights[step, head, digit_at].sum() > 0.95


def test_the_weights_of_the_given_order_worked_out_by_hand():
    """4 * ( 2 + 7 ) CTX, after the 4 was pushed: the next operand is 2. And after all three."""
    row = [4, MUL, 18, 2, ADD, 7, 19, CTX]
    attention = make_attention(0, 4, 1, learned=False)
    weights = looked(attention, contexts_of([row]), torch.tensor([[CTX, 4, 2, ADD, 7]]))[0]
    place = np.array([1, 1, 1, 2, 2, 3, 3, 4])  # operands read; the end is one behind the last
    dislike = np.array([0, 30, 30, 0, 30, 0, 30, 0])
    for step, ats in [(1, [2, 1, 3, 0]), (4, [4, 3, 5, 2])]:
        for head, at in enumerate(ats):
            powers = np.exp(-8.0 * (at - place) ** 2 - dislike)
            np.testing.assert_allclose(weights[step, head], powers / powers.sum(), atol=1e-12)
    # Past the last operand there is the end to look at, for both heads that are there.
    assert weights[4].argmax(-1).tolist() == [7, 5, 7, 3]
    assert weights[4, [0, 2], 7].min() > 0.999


def test_the_counters_of_the_given_order_count_operands_less_operations():
    attention = make_attention(0, 2, 2, learned=False)
    tokens = [CTX, 1, 2, MUL, 3, 4, ADD, SUB]
    places = attention.places(attention.start.expand(1, -1), torch.tensor([tokens]))[0]
    for counter in (2, 3):
        assert places[:, counter].tolist() == [0, 1, 2, 1, 2, 3, 2, 1]
