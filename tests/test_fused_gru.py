"""The compiled GRU against the one of torch, in float64."""

import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packed_gru import sizes_of
from torch import nn

from toolagent.models import fused_gru
from toolagent.models.fused_gru import FusedGRU, kernels_for, without_kernels
from toolagent.models.packed_gru import PackedGRU, gru_step, gru_table, packed_gru

VOCABULARY = 5


def arguments(lengths, width, extra, seed, scale=1.0):
    """Tensors that have gradients, and the rest of what `PackedGRU` takes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes_of(sorted(lengths, reverse=True))
    total = sum(sizes)

    def some(*shape):
        return scale * torch.randn(shape, generator=generator)

    tensors = [
        some(VOCABULARY, 3 * width),
        some(3 * width, width) / width**0.5,
        some(3 * width),
        some(sizes[0], width),
    ]
    tokens = torch.randint(0, VOCABULARY, (total,), generator=generator)
    steps = None
    if extra == "some":
        steps = torch.randperm(total, generator=generator)[: total // 2]
    if extra != "none":
        tensors.append(some(total if steps is None else len(steps), 3 * width))
    return tensors, (tokens, sizes, steps), some(total, width) / scale


def outputs_and_gradients(function, tensors, rest, upstream, dtype, laid_out=lambda tensor: tensor):
    tokens, sizes, steps = rest
    leaves = [laid_out(tensor.to(dtype)).requires_grad_() for tensor in tensors]
    extra = [leaves[4], steps] if len(leaves) > 4 else []
    outputs = function(*leaves[:4], tokens, sizes, *extra)
    return outputs, *torch.autograd.grad(outputs, leaves, laid_out(upstream.to(dtype)))


def every_second_column(tensor):
    """The same numbers, in memory with others between them."""
    return torch.stack([tensor, torch.full_like(tensor, 7.0)], -1).detach()[..., 0]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    width=st.integers(1, 40),
    extra=st.sampled_from(["none", "all", "some"]),
    laid_out=st.sampled_from([lambda tensor: tensor, every_second_column]),
    scale=st.sampled_from([0.1, 1.0, 2.0]),
    seed=st.integers(0, 2**20),
)
def test_it_is_torch_s_in_every_output_and_gradient(lengths, width, extra, laid_out, scale, seed):
    given = arguments(lengths, width, extra, seed, scale)
    exact = outputs_and_gradients(PackedGRU.apply, *given, torch.float64)
    fused = outputs_and_gradients(FusedGRU.apply, *given, torch.float32, laid_out)
    for ours, theirs in zip(fused, exact, strict=True):
        size = 1.0 + theirs.abs().max().item() if theirs.numel() else 1.0
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5 * size, rtol=0)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**20))
def test_a_step_is_that_of_torch_s_cell_for_any_layout(rows, width, seed):
    torch.manual_seed(seed)
    cell, embedding = nn.GRUCell(width, width), torch.randn(VOCABULARY, width)
    tokens = torch.randint(0, VOCABULARY, (rows,))
    states = torch.randn(rows, width + 3)
    with torch.no_grad():
        table = gru_table(embedding, cell)
        found = gru_step(table, table.inputs[tokens], states[:, :width])
        assert kernels_for(found)
        expected = cell(embedding[tokens], states[:, :width])
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    # Nothing that has gradients is cut off from them.
    assert gru_step(gru_table(embedding, cell), table.inputs[tokens], found).requires_grad


def test_gates_saturate_and_what_is_no_number_stays_none():
    inputs = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")])
    width = len(inputs)
    table = torch.stack([inputs] * 3).reshape(1, -1)
    weight, bias = torch.zeros(3 * width, width), torch.zeros(3 * width)
    hidden, tokens = torch.full((1, width), 0.25), torch.zeros(1, dtype=torch.int32)
    found, expected = (
        function(table, weight, bias, hidden, tokens, [1])
        for function in (FusedGRU.apply, PackedGRU.apply)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, equal_nan=True)


def test_the_same_twice_is_the_same_to_the_last_bit():
    given = arguments([6] * 30 + [4] * 30 + [1] * 4, 33, "some", 0)
    one, two = (outputs_and_gradients(FusedGRU.apply, *given, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_its_arguments_are_left_as_they_were():
    tensors, (tokens, sizes, _), _ = arguments([3, 2], 17, "all", 0)
    copies = [tensor.clone() for tensor in tensors]
    FusedGRU.apply(*tensors[:4], tokens, sizes, tensors[4])
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1, dtype=torch.float64), torch.zeros(1, device="meta")]
)
def test_other_types_and_devices_are_torch_s(tensor):
    assert kernels_for(torch.zeros(1)) and not kernels_for(torch.zeros(1), tensor)
    with without_kernels():
        assert not kernels_for(torch.zeros(1))


def test_without_llvmlite_torch_computes_the_same(monkeypatch):
    tensors, (tokens, sizes, _), _ = arguments([4, 2], 17, "none", 0)
    fused = packed_gru(*tensors, tokens, sizes)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)  # as if it were not installed
    fused_gru._compiled.cache_clear()
    try:
        assert kernels_for(*tensors) is None
        torch.testing.assert_close(packed_gru(*tensors, tokens, sizes), fused)
    finally:
        monkeypatch.undo()
        fused_gru._compiled.cache_clear()


def test_they_are_compiled_in_little_time():
    """Nothing is kept on disk: every process compiles them anew, in 0.03 s on an idle core."""
    fused_gru._compiled.cache_clear()
    started = time.process_time()
    assert kernels_for(torch.zeros(1))
    assert time.process_time() - started < 0.3
