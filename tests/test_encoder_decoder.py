"""The encoder-decoder: against loops over single tokens; what it copies and what it plans by."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_forms import (
    CLOSE,
    FORMS,
    INTERFACE,
    OPEN,
    Batch,
    as_episodes,
    close,
    make_batch,
    perturbed,
    unrolled,
)

from toolagent.models.encoder_decoder import EncoderDecoderNetwork, EncoderDecoderOptions
from toolagent.models.packing import one_of_each_run, pack, unpack
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, CTX, EOS, MUL, NUM_TOKENS

SMALL = EncoderDecoderOptions(embedding_size=6, num_heads=3, num_counters=2)
VARIANTS = [
    SMALL,
    SMALL._replace(sees_digits=True),
    SMALL._replace(reading="operands"),
    SMALL._replace(reading="operands", sees_digits=True, num_heads=1, num_counters=0),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_network(seed=0, options=SMALL):
    torch.manual_seed(seed)
    return perturbed(EncoderDecoderNetwork(INTERFACE, options))


# The oracle: the equations of the docstrings, one episode and one token at a time, in float64 ---


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru_by_hand(gates, hidden, weights, name):
    """One step; `gates` are the input's, in torch's order."""
    recurrent = weights[f"{name}.weight_hh"] @ hidden + weights[f"{name}.bias_hh"]
    (i_r, i_z, i_n), (h_r, h_z, h_n) = np.split(gates, 3), np.split(recurrent, 3)
    reset, update = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
    return (1 - update) * np.tanh(i_n + reset * h_n) + update * hidden


def by_hand(network, context, tokens):
    """One episode: logits (T, 18), values (T,) and hidden states (T, S)."""
    weights = {name: w.detach().double().numpy() for name, w in network.state_dict().items()}
    options = network.options
    width, heads = options.embedding_size, options.num_heads
    shown = [token for token in context.tolist() if token != EOS]

    def look_of(tokens):  # all digits look like 0
        return [0 if token < 10 and not options.sees_digits else token for token in tokens]

    seen = look_of(shown)

    def read(name, sequence):
        hidden, states = np.zeros(width), []
        for token in sequence:
            x = weights["context_embedding.weight"][token]
            gates = weights[f"{name}.weight_ih"] @ x + weights[f"{name}.bias_ih"]
            hidden = gru_by_hand(gates, hidden, weights, name)
            states.append(hidden)
        return states

    forward = read("forward_gru", seen)
    backward = read("backward_gru", seen[::-1])[::-1]

    def linear(name, *parts):
        return weights[f"{name}.weight"] @ np.concatenate(parts) + weights[f"{name}.bias"]

    encoded = [linear("encoding", f, b) for f, b in zip(forward, backward, strict=True)]
    hidden = np.tanh(linear("summary", forward[-1], backward[0]))
    places = weights["attention.start"].copy()
    logits, values, states = [], [], []
    for token in look_of(tokens.tolist()):
        places += weights["attention.write_steps"][token]
        found, copies = [], np.zeros((heads, NUM_TOKENS))
        for head in range(heads):
            place, scores = 0.0, []
            for context_token in seen:
                place += weights["attention.read_steps"][context_token, head]
                scores.append(
                    -abs(weights["attention.sharpness"][head]) * (places[head] - place) ** 2
                    + weights["attention.preference"][context_token, head]
                )
            looked = np.exp(np.array(scores) - max(scores))
            looked /= looked.sum()
            found.append(sum(w * e for w, e in zip(looked, encoded, strict=True)))
            for w, context_token in zip(looked, shown, strict=True):
                if context_token < ANS:  # the parentheses are no actions
                    copies[head, context_token] += w
        gates = (
            weights["decoder_gru.weight_ih"] @ weights["token_embedding.weight"][token]
            + weights["decoder_gru.bias_ih"]
            + weights["read_input.weight"] @ np.concatenate([*found, places / 4])
        )
        hidden = gru_by_hand(gates, hidden, weights, "decoder_gru")
        out = linear("heads", hidden)
        gate = out[NUM_TOKENS + 1 :]
        logits.append(out[:NUM_TOKENS] + 2 * sum(gate[h] * copies[h] for h in range(heads)))
        values.append(out[NUM_TOKENS])
        states.append(np.concatenate([hidden, places]))
    return np.array(logits), np.array(values), np.array(states)


def equal(one, other):
    assert torch.equal(one, other)


# Right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_equations_worked_out_by_hand(form, options):
    network, batch = make_network(1, options), make_batch(0, 12)
    logits, values, *hidden = form(network, batch)
    assert logits.shape == (12, 6, NUM_TOKENS) and values.shape == (12, 6)
    for row in range(12):
        expected = by_hand(network, batch.context[row], batch.tokens[row])
        steps = int(batch.lengths[row]) if form is as_episodes else 6
        np.testing.assert_allclose(logits[row, :steps], expected[0][:steps], atol=5e-5)
        np.testing.assert_allclose(values[row, :steps], expected[1][:steps], atol=5e-5)
        assert (logits[row, steps:] == 0).all() and (values[row, steps:] == 0).all()
        for state in hidden:
            assert state.shape == (12, network.hidden_size)
            np.testing.assert_allclose(state[row], expected[2][-1], atol=5e-5)


@pytest.mark.full
@pytest.mark.parametrize("reading", ["learned", "operands"])
def test_gradients_are_right_by_finite_differences(reading):
    options = EncoderDecoderOptions(2, 2, 1, reading)
    network = make_network(0, options).double()
    batch = make_batch(3, 3, 3, group=2)

    def forward(*_):  # the parameters themselves are moved
        return network.unroll_episodes(batch.context, batch.stage, batch.actions, batch.lengths)

    assert torch.autograd.gradcheck(forward, tuple(network.parameters()))


def test_a_given_reading_order_has_nothing_to_train():
    for options in VARIANTS:
        names = [name for name, _ in make_network(0, options).named_parameters()]
        attended = any(name.startswith("attention.") for name in names)
        assert attended == (options.reading == "learned")


# What it is for ----------------------------------------------------------------------------------


def expressions(seed, size):
    """Problems of the task, with tokens before each step that are no program."""
    rng = np.random.default_rng(seed)
    problems = get_task("expression").sample(rng, rng.integers(1, 9, size))
    tokens = torch.tensor(rng.integers(0, NUM_TOKENS, (size, 8)))
    return Batch(
        torch.from_numpy(problems.context),
        torch.from_numpy(problems.stage),
        tokens,
        torch.tensor(rng.integers(1, 9, size)),
    )


def with_other_digits(batch, digits, names=("context", "tokens")):
    """The same expressions and programs with digit d exchanged for `digits[d]`."""
    table = torch.cat([torch.tensor(digits), torch.arange(10, 20)])
    parts = {name: getattr(batch, name) for name in names}
    return dataclasses.replace(
        batch, **{name: table[part.long()].to(part.dtype) for name, part in parts.items()}
    )


def without_copies(network):
    """The same network with every gate shut: its logits are what is written of itself."""
    shut = copy.deepcopy(network)
    with torch.no_grad():
        shut.heads.weight[NUM_TOKENS + 1 :] = 0.0
        shut.heads.bias[NUM_TOKENS + 1 :] = 0.0
    return shut


def changes_only_what_is_copied(form, network, batch, digits):
    """Other digits, read and written alike: the same plan to the last bit, other copies.

    `digits` may make two equal, but then two problems may become one, which is read once: the
    same numbers, added up in another order.
    """
    same = equal if len(set(digits)) == 10 else close
    other = with_other_digits(batch, digits)
    logits, values, *hidden = form(network, batch)
    other_logits, other_values, *other_hidden = form(network, other)
    written, *_ = form(without_copies(network), batch)
    other_written, *_ = form(without_copies(network), other)
    same(logits[..., 10:], other_logits[..., 10:])
    same(written, other_written)
    same(values, other_values)
    for one, two in zip(hidden, other_hidden, strict=True):
        same(one, two)
    copied, other_copied = (logits - written)[..., :10], (other_logits - written)[..., :10]
    expected = torch.zeros_like(copied).index_add(-1, torch.tensor(digits), copied)
    close(other_copied, expected)
    return copied


READINGS = ["operands", "learned"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reading", READINGS)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    digits=st.permutations(range(10)) | st.lists(st.integers(0, 9), min_size=10, max_size=10),
)
def test_a_network_blind_to_digits_plans_by_the_structure_alone(form, reading, seed, digits):
    network = make_network(seed, SMALL._replace(reading=reading))
    copied = changes_only_what_is_copied(form, network, expressions(seed, 4), digits)
    assert copied.abs().max() > 1e-3  # something is copied


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reading", READINGS)
def test_which_digits_a_blind_network_has_written_changes_nothing_at_all(form, reading):
    """Also where others are written than stand in the context."""
    network, batch = make_network(5, SMALL._replace(reading=reading)), expressions(5, 6)
    other = with_other_digits(batch, [7, 7, 1, 0, 3, 9, 2, 2, 5, 4], ["tokens"])
    assert (batch.tokens != other.tokens).any(1).all()
    for one, two in zip(form(network, batch), form(network, other), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("names", [["context"], ["tokens"]])
@pytest.mark.parametrize("reading", READINGS)
def test_a_network_that_sees_digits_plans_by_them_too(reading, names):
    """By those that it reads, and by those that it has written."""
    network = make_network(0, SMALL._replace(reading=reading, sees_digits=True))
    batch = expressions(0, 6)
    batch.tokens[:, 1] = torch.arange(6)  # everyone has written one
    other = with_other_digits(batch, [(digit + 1) % 10 for digit in range(10)], names)
    _, values, hidden = unrolled(network, batch)
    _, other_values, other_hidden = unrolled(network, other)
    assert ((values - other_values).abs().amax(1) > 1e-3).all()
    assert ((hidden - other_hidden).abs().amax(1) > 1e-3).all()


def test_a_gate_copies_what_its_head_looks_at():
    """One head whose gate is wide open, on the next operand: the episode spells the operands."""
    network = make_network(0, SMALL._replace(reading="operands", num_heads=1))
    with torch.no_grad():
        network.heads.weight.zero_()
        network.heads.bias.zero_()
        network.heads.bias[NUM_TOKENS + 1] = 5.0
    context = torch.tensor([[OPEN, 7, ADD, 2, CLOSE, MUL, 7, CTX, EOS]], dtype=torch.int8)
    batch = Batch(context, torch.tensor([3]), torch.tensor([[CTX, 7, ADD, 2]]), torch.tensor([4]))
    for form in FORMS:
        logits, *_ = form(network, batch)
        assert logits.argmax(-1).tolist() == [[7, 2, 2, 7]]
        assert (logits.amax(-1) - 10.0).abs().max() < 0.02  # 2 * 5 * weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "foo"}, "reading is 'foo'; expected one of learned, operands"),
        ({"embedding_size": 0}, "embedding_size is 0; it must be at least 1"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_counters": -1}, "num_counters is -1; it must be at least 0"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoderNetwork(INTERFACE, SMALL._replace(**options))


# Packing and runs --------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), spare=st.integers(0, 2))
@settings(deadline=None)
def test_packing_is_time_major_the_longest_first(lengths, spare):
    steps = max(lengths) + spare
    packing = pack(torch.tensor(lengths), steps)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])  # stable
    assert packing.order.tolist() == order
    expected = [(row, step) for step in range(max(lengths)) for row in order if lengths[row] > step]
    assert [divmod(place, steps) for place in packing.place.tolist()] == expected
    assert packing.sizes == [
        sum(length > step for length in lengths) for step in range(max(lengths))
    ]
    padded = torch.arange(1.0, len(lengths) * steps * 2 + 1).view(len(lengths), steps, 2)
    there = unpack(padded.flatten(0, 1)[packing.place], packing, len(lengths), steps)
    alive = torch.arange(steps) < torch.tensor(lengths).unsqueeze(1)
    assert torch.equal(there, padded * alive.unsqueeze(-1))


@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=8))
@settings(deadline=None)
def test_one_of_each_run_is_kept_and_can_be_repeated(rows):
    contexts = torch.tensor([[row, CTX, EOS] for row in rows])
    kept, repeat = one_of_each_run(contexts)
    assert kept[:, 0].tolist() == [row for row, _ in itertools.groupby(rows)]
    if len(kept) == len(rows):
        assert repeat is None
    else:
        assert torch.equal(kept[repeat], contexts)
