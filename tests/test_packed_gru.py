"""The packed GRU against torch's own, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from toolagent.models.network import StageGRUNetwork
from toolagent.models.packed_gru import PackedGRU
from toolagent.tasks import get_task
from toolagent.tasks.tokens import CTX, EOS, NUM_TOKENS

lengths_lists = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def sizes_of(lengths):
    """How many episodes have a step 0, a step 1, ..."""
    return [sum(length > step for length in lengths) for step in range(max(lengths))]


def packed(padded, lengths):
    """(B, T, ...) of episodes sorted by falling length, time-major without padding."""
    return torch.cat([padded[:size, step] for step, size in enumerate(sizes_of(lengths))])


def padded_of(packed_rows, lengths):
    """The inverse of `packed`, 0 where nothing happened."""
    rows = packed_rows.new_zeros(len(lengths), max(lengths), *packed_rows.shape[1:])
    start = 0
    for step, size in enumerate(sizes_of(lengths)):
        rows[:size, step] = packed_rows[start : start + size]
        start += size
    return rows


def both(lengths, seed, width=5, vocabulary=4):
    """Outputs (B, T, D) and gradients (by name) of nn.GRU and of PackedGRU, in float64."""
    torch.manual_seed(seed)
    gru = nn.GRU(width, width, batch_first=True).double()
    embedding = torch.randn(vocabulary, width, dtype=torch.float64)
    tokens = torch.randint(0, vocabulary, (len(lengths), max(lengths)))
    first = torch.randn(len(lengths), width, dtype=torch.float64)
    upstream = torch.randn(len(lengths), max(lengths), width, dtype=torch.float64)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    results = []
    for forward in (_by_torch, _by_packing):
        gru.zero_grad()
        table, start = embedding.clone().requires_grad_(), first.clone().requires_grad_()
        outputs = forward(gru, table, tokens, start, lengths) * mask.unsqueeze(-1)
        (outputs * upstream).sum().backward()
        gradients = {name: p.grad.clone() for name, p in gru.named_parameters()}
        results.append((outputs.detach(), gradients | {"x": table.grad, "h": start.grad}))
    return results


def _by_torch(gru, embedding, tokens, first, lengths):
    return gru(embedding[tokens], first.unsqueeze(0))[0]


def _by_packing(gru, embedding, tokens, first, lengths):
    outputs = PackedGRU.apply(
        nn.functional.linear(embedding, gru.weight_ih_l0, gru.bias_ih_l0),
        gru.weight_hh_l0,
        gru.bias_hh_l0,
        first,
        packed(tokens, lengths),
        sizes_of(lengths),
    )
    return padded_of(outputs, lengths)


@settings(max_examples=30, deadline=None)
@given(lengths=lengths_lists, seed=st.integers(0, 2**20))
def test_outputs_and_every_gradient_are_those_of_torch_s_gru(lengths, seed):
    (outputs, gradients), (ours, our_gradients) = both(sorted(lengths, reverse=True), seed)
    torch.testing.assert_close(ours, outputs, atol=1e-12, rtol=1e-10)
    assert gradients.keys() == our_gradients.keys()
    for name in gradients:
        torch.testing.assert_close(our_gradients[name], gradients[name], msg=name)


@settings(max_examples=20, deadline=None)
@given(lengths=lengths_lists, seed=st.integers(0, 2**20))
def test_with_extra_input_it_is_torch_s_gru_over_both_inputs_side_by_side(lengths, seed):
    """W [x; y] = W_x x + W_y y: the table holds the first part, `extra` the second."""
    torch.manual_seed(seed)
    lengths, width, read = sorted(lengths, reverse=True), 5, 3
    gru = nn.GRU(width + read, width, batch_first=True).double()
    embedding = torch.randn(4, width, dtype=torch.float64)
    tokens = torch.randint(0, 4, (len(lengths), max(lengths)))
    also = torch.randn(*tokens.shape, read, dtype=torch.float64)
    first = torch.randn(len(lengths), width, dtype=torch.float64)
    upstream = torch.randn(*tokens.shape, width, dtype=torch.float64)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)

    def by_torch(x, y, h):
        return gru(torch.cat([x[tokens], y], -1), h.unsqueeze(0))[0]

    def by_packing(x, y, h):
        outputs = PackedGRU.apply(
            nn.functional.linear(x, gru.weight_ih_l0[:, :width], gru.bias_ih_l0),
            gru.weight_hh_l0,
            gru.bias_hh_l0,
            h,
            packed(tokens, lengths),
            sizes_of(lengths),
            nn.functional.linear(packed(y, lengths), gru.weight_ih_l0[:, width:]),
        )
        return padded_of(outputs, lengths)

    results = []
    for forward in (by_torch, by_packing):
        gru.zero_grad()
        leaves = [tensor.clone().requires_grad_() for tensor in (embedding, also, first)]
        outputs = forward(*leaves) * mask.unsqueeze(-1)
        (outputs * upstream).sum().backward()
        gradients = [leaf.grad for leaf in leaves] + [p.grad.clone() for p in gru.parameters()]
        results.append([outputs.detach(), *gradients])
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected)


def test_extra_input_is_not_written_into():
    extra, table = torch.ones(3, 6), torch.zeros(1, 6)
    arguments = (torch.ones(6, 2), torch.ones(6), torch.ones(2, 2), torch.zeros(3).int(), [2, 1])
    PackedGRU.apply(table, *arguments, extra)
    assert torch.equal(extra, torch.ones(3, 6)) and torch.equal(table, torch.zeros(1, 6))


@pytest.mark.parametrize("steps", [None, "all", [6, 0, 3]])
def test_gradients_are_right_by_finite_differences(steps):
    """With extra input of no step, of all and of some, in any order."""
    torch.manual_seed(0)
    width, lengths = 3, [4, 2, 1]
    tokens = torch.randint(0, 5, (sum(lengths),))

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    inputs = [leaf(5, 3 * width), leaf(3 * width, width), leaf(3 * width), leaf(3, width)]
    if steps:
        inputs.append(leaf(sum(lengths) if steps == "all" else len(steps), 3 * width))
    some = [torch.tensor(steps)] if isinstance(steps, list) else []
    assert torch.autograd.gradcheck(
        lambda *a: PackedGRU.apply(*a[:4], tokens, sizes_of(lengths), *a[4:], *some), inputs
    )


def test_extra_input_of_some_steps_is_that_of_all_with_zeros_elsewhere():
    torch.manual_seed(0)
    table, weight, bias, first = (torch.randn(*shape) for shape in ((4, 6), (6, 2), (6,), (2, 2)))
    tokens, some = torch.tensor([0, 3, 1]), torch.randn(2, 6)
    every = torch.zeros(3, 6)
    every[[2, 0]] = some
    arguments = (table, weight, bias, first, tokens, [2, 1])
    sparse = PackedGRU.apply(*arguments, some, torch.tensor([2, 0]))
    torch.testing.assert_close(sparse, PackedGRU.apply(*arguments, every))


# The network's use of it ---------------------------------------------------------------------


def episodes(seed, lengths, steps=6):
    """Contexts, stages, actions (B, T) with `EOS` after the end, and lengths, in any order."""
    generator = torch.Generator().manual_seed(seed)
    size = len(lengths)
    stage = torch.randint(0, 3, (size,), generator=generator)
    context = torch.randint(0, 10, (size, 6), generator=generator)
    place = torch.arange(6)
    context = torch.where(place == 3 + stage[:, None], torch.tensor(CTX), context)
    context = torch.where(place > 3 + stage[:, None], torch.tensor(EOS), context)
    actions = torch.randint(0, NUM_TOKENS, (size, steps), generator=generator)
    lengths = torch.tensor(lengths)
    actions = torch.where(torch.arange(steps) < lengths[:, None], actions, torch.tensor(EOS))
    return context.to(torch.int8), stage.to(torch.int8), actions.to(torch.int8), lengths


def network():
    torch.manual_seed(3)
    return StageGRUNetwork(get_task("calculator").interface, (8,))


@settings(max_examples=20, deadline=None)
@given(lengths=lengths_lists, seed=st.integers(0, 2**20))
def test_whole_episodes_are_a_loop_of_single_steps(lengths, seed):
    model, (context, stage, actions, lengths) = network(), episodes(seed, lengths)
    logits, values = model.unroll_episodes(context, stage, actions, lengths)
    assert logits.shape == (*actions.shape, NUM_TOKENS) and values.shape == actions.shape
    table = model.step_table()
    for row, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            encoding, hidden = model.begin(context[row : row + 1], stage[row : row + 1])
        token = torch.tensor([CTX])
        for step in range(length):
            step_logits, value, hidden = model.step(table, token, encoding, hidden)
            torch.testing.assert_close(logits[row, step], step_logits[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(values[row, step], value[0], atol=1e-5, rtol=1e-4)
            token = actions[row, step : step + 1].int()
        assert (logits[row, length:] == 0).all() and (values[row, length:] == 0).all()


def test_the_packed_and_the_padded_path_train_alike():
    lengths = [1, 6, 3, 3, 5, 1, 2, 6]
    context, stage, actions, lengths = episodes(1, lengths)
    weights = torch.randn(*actions.shape, NUM_TOKENS + 1)
    gradients = []
    for packing in (True, False):
        model = network()
        if packing:
            logits, values = model.unroll_episodes(context, stage, actions, lengths)
        else:  # nn.GRU over the padding too, as on a GPU
            previous = torch.cat([torch.full_like(actions[:, :1], CTX), actions[:, :-1]], 1)
            logits, values, _ = model.unroll(previous, *model.begin(context, stage))
            mask = torch.arange(actions.shape[1]) < lengths.unsqueeze(1)
            logits, values = logits * mask.unsqueeze(-1), values * mask
        (torch.cat([logits, values.unsqueeze(-1)], -1) * weights).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-4, rtol=1e-4)


def test_what_stands_after_the_end_changes_nothing():
    context, stage, actions, lengths = episodes(2, [2, 6, 1, 4])
    after = torch.arange(6) >= lengths[:, None]
    other = torch.where(after, torch.tensor(7, dtype=torch.int8), actions)
    model = network()
    for one, two in zip(
        model.unroll_episodes(context, stage, actions, lengths),
        model.unroll_episodes(context, stage, other, lengths),
        strict=True,
    ):
        assert torch.equal(one, two)
