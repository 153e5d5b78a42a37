"""The stage-embedded GRU in its forms; nothing of an episode depends on its neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import get_task
from toolagent.tasks.tokens import CTX, EOS, NUM_TOKENS

WIDTH = 12


pytestmark = pytest.mark.usefixtures("one_thread")


def make_network(seed=0, width=WIDTH):
    torch.manual_seed(seed)
    network = StageGRUNetwork(get_task("calculator").interface, (width,))
    with torch.no_grad():  # torch starts biases near 0, where a forgotten one would not be seen
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def episodes(seed, size, steps=7):
    """Contexts (B, 6) of random stages, stages (B,) and previous tokens (B, T)."""
    rng = np.random.default_rng(seed)
    stage = rng.integers(0, 3, size)
    context = np.full((size, 6), EOS)
    for row in range(size):
        context[row, : 3 + stage[row]] = rng.integers(0, 10, 3 + stage[row])
        context[row, 3 + stage[row]] = CTX
    tokens = rng.integers(0, NUM_TOKENS, (size, steps))
    tokens[:, 0] = CTX
    return torch.tensor(context, dtype=torch.int8), torch.tensor(stage), torch.tensor(tokens)


def by_hand(network, context, stage, tokens):
    """One episode, number by number in float64: logits (T, 18) and values (T,)."""
    weights = {name: w.detach().double().numpy() for name, w in network.state_dict().items()}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    shown = [token for token in context.tolist() if token != EOS]
    mean = sum(weights["token_embedding.weight"][token] for token in shown) / len(shown)
    hidden = np.tanh(mean + weights["stage_embedding.weight"][int(stage)])
    logits, values = [], []
    for token in tokens.tolist():
        x = weights["token_embedding.weight"][token]
        i = weights["gru.weight_ih_l0"] @ x + weights["gru.bias_ih_l0"]
        h = weights["gru.weight_hh_l0"] @ hidden + weights["gru.bias_hh_l0"]
        (i_r, i_z, i_n), (h_r, h_z, h_n) = np.split(i, 3), np.split(h, 3)
        reset, update = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        hidden = (1 - update) * np.tanh(i_n + reset * h_n) + update * hidden
        logits.append(weights["policy_head.weight"] @ hidden + weights["policy_head.bias"])
        values.append((weights["value_head.weight"] @ hidden + weights["value_head.bias"])[0])
    return np.array(logits), np.array(values)


def unrolled(network, context, stage, tokens):
    with torch.no_grad():
        logits, values, _ = network.unroll(tokens, *network.begin(context, stage))
    return logits.numpy(), values.numpy()


def in_two_parts(network, context, stage, tokens):
    """The hidden state carried on in the middle; the encoding is of the beginning."""
    cut = tokens.shape[1] // 2
    with torch.no_grad():
        encoding, hidden = network.begin(context, stage)
        head_logits, head_values, hidden = network.unroll(tokens[:, :cut], encoding, hidden)
        tail_logits, tail_values, _ = network.unroll(tokens[:, cut:], encoding, hidden)
    logits = torch.cat([head_logits, tail_logits], 1)
    return logits.numpy(), torch.cat([head_values, tail_values], 1).numpy()


def stepped(network, context, stage, tokens):
    table = network.step_table()
    with torch.no_grad():
        encoding, hidden = network.begin(context, stage)
    logits, values = [], []
    for column in tokens.t():
        step_logits, step_values, hidden = network.step(table, column, encoding, hidden)
        logits.append(step_logits)
        values.append(step_values)
    return torch.stack(logits, 1).numpy(), torch.stack(values, 1).numpy()


@pytest.mark.parametrize("forward", [unrolled, in_two_parts, stepped])
def test_all_forms_are_the_equations_worked_out_by_hand(forward):
    network = make_network()
    context, stage, tokens = episodes(0, 9)
    logits, values = forward(network, context, stage, tokens)
    assert logits.shape == (9, 7, NUM_TOKENS) and values.shape == (9, 7)
    for row in range(9):
        expected = by_hand(network, context[row], stage[row], tokens[row])
        np.testing.assert_allclose(logits[row], expected[0], atol=2e-5)
        np.testing.assert_allclose(values[row], expected[1], atol=2e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.integers(1, 12), steps=st.integers(1, 9))
def test_a_step_by_table_is_a_step_of_the_unrolled_gru(seed, size, steps):
    network = make_network(seed)
    batch = episodes(seed, size, steps)
    for one, other in zip(stepped(network, *batch), unrolled(network, *batch), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_table_belongs_to_the_weights_it_was_made_of():
    network, batch = make_network(), episodes(0, 3)
    table = network.step_table()
    with torch.no_grad():
        encoding, hidden = network.begin(*batch[:2])
    before, *_ = network.step(table, batch[2][:, 0], encoding, hidden)
    before = before.clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    after, *_ = network.step(table, batch[2][:, 0], encoding, hidden)
    assert torch.equal(before, after)
    renewed, *_ = network.step(network.step_table(), batch[2][:, 0], encoding, hidden)
    assert not torch.allclose(before, renewed)


def assert_alone_as_with_neighbours(network, forward):
    context, stage, tokens = episodes(1, 16)
    together = forward(network, context, stage, tokens)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = forward(network, context[order], stage[order], tokens[order])
    for row in range(16):
        one = slice(row, row + 1)
        alone = forward(network, context[one], stage[one], tokens[one])
        place = int((order == row).nonzero())
        for number, (single, batch, other) in enumerate(
            zip(alone, together, shuffled, strict=True)
        ):
            np.testing.assert_allclose(single[0], batch[row], atol=1e-5, err_msg=str(number))
            np.testing.assert_allclose(single[0], other[place], atol=1e-5, err_msg=str(number))


@pytest.mark.parametrize("forward", [unrolled, stepped])
def test_an_episode_is_the_same_alone_and_with_any_neighbours(forward):
    assert_alone_as_with_neighbours(make_network(), forward)


def test_the_learner_trains_every_parameter():
    network, (context, stage, tokens) = make_network(), episodes(2, 64)
    logits, values, _ = network.unroll(tokens, *network.begin(context, stage))
    (logits.pow(2).mean() + values.pow(2).mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("width", [0, -1])
def test_a_network_without_width_is_refused(width):
    with pytest.raises(ValueError, match=f"embedding_size is {width}; it must be at least 1"):
        StageGRUNetwork(get_task("calculator").interface, (width,))
