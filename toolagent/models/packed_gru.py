"""The GRU over whole episodes of different lengths, forward and backward written out; and a step.

Faster than torch.nn.GRU for these networks: the products of the input weights and the embeddings
are computed once, in a table, and nothing is computed for padding: step t runs over the episodes
that have a step t.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from toolagent.models.fused_gru import FusedGRU, fused_step, kernels_for
from toolagent.models.packing import add_to_parents

# In one pass: gradient * (1 - y^2), and gradient * y * (1 - y).
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class GRUWeights(NamedTuple):
    """The weights of a GRU in torch's order r, z, n; of an `nn.GRUCell` the attributes so named."""

    weight_ih: Tensor  # (3D, E)
    bias_ih: Tensor  # (3D,)
    weight_hh: Tensor  # (3D, D)
    bias_hh: Tensor  # (3D,)


class GRUTable(NamedTuple):
    """What `gru_step` needs of a GRU and the embeddings of the V tokens that it may read."""

    inputs: Tensor  # (V, 3D): W_ih embedding + b_ih, and b_hh of the gates r and z
    recurrent_weight: Tensor  # (D, 3D)
    candidate_bias: Tensor  # (D,)


def gru_table(embedding: Tensor, gru: GRUWeights | nn.GRUCell) -> GRUTable:
    """The table of a GRU's current weights; embedding (V, E)."""
    two = 2 * gru.weight_hh.shape[1]
    gate_bias = functional.pad(gru.bias_hh[:two], (0, two // 2))
    return GRUTable(
        functional.linear(embedding, gru.weight_ih, gru.bias_ih) + gate_bias,
        gru.weight_hh.t().contiguous(),
        gru.bias_hh[two:].clone(),
    )


def gru_step(table: GRUTable, inputs: Tensor, hidden: Tensor) -> Tensor:
    """One step: (B, 3D), a row of `table.inputs` for each, and (B, D) to (B, D).

    For rollouts: what it returns can't be differentiated.
    """
    width = hidden.shape[1]
    two = 2 * width
    weight, bias = table.recurrent_weight, table.candidate_bias
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, hidden, weight))
    if not learning and (kernels := kernels_for(inputs, hidden, weight)):
        return fused_step(kernels, inputs, hidden @ weight, bias, hidden)
    gates = torch.sigmoid_(torch.addmm(inputs[:, :two], hidden, weight[:, :two]))
    recurrent = torch.addmm(bias, hidden, weight[:, two:])
    new = tanh_(torch.addcmul(inputs[:, two:], gates[:, :width], recurrent))
    return torch.lerp(new, hidden, gates[:, width:])


def tanh_(values: Tensor) -> Tensor:
    """tanh in place, as 2 sigmoid(2x) - 1: on a CPU in a third of the time of torch's own."""
    return values.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


def packed_gru(
    table: Tensor,
    recurrent_weight: Tensor,
    recurrent_bias: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    sizes: list[int],
    extra: Tensor | None = None,
    extra_steps: Tensor | None = None,
    parents: list[Tensor] | None = None,
) -> Tensor:
    """The GRU over packed episodes, by the fastest way there is (see `PackedGRU`)."""
    inputs = (table, recurrent_weight, recurrent_bias, hidden)
    fused = kernels_for(*inputs, *(() if extra is None else (extra,)))
    function = FusedGRU if fused else PackedGRU
    return function.apply(*inputs, tokens, sizes, extra, extra_steps, parents)


class PackedGRU(torch.autograd.Function):
    """h_t = GRU(x_t, h_{t-1}) over episodes sorted by falling length.

    In torch's gate order, with i = table[token] and g = W_hh h_{t-1} + b_hh:

        r = sigmoid(i_r + g_r)    z = sigmoid(i_z + g_z)    n = tanh(i_n + r * g_n)
        h_t = n + z * (h_{t-1} - n)

    *Packed* means time-major without padding: first the N_0 episodes' step 0, then the N_1
    <= N_0 episodes' step 1, and so on; N steps in all.

    This is the reference, and for all types and devices; `FusedGRU` is faster.

    Source: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", in the
    variant of `torch.nn.GRU`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        recurrent_weight: Tensor,
        recurrent_bias: Tensor,
        hidden: Tensor,
        tokens: Tensor,
        sizes: list[int],
        extra: Tensor | None = None,
        extra_steps: Tensor | None = None,
        parents: list[Tensor] | None = None,
    ) -> Tensor:
        """Args:
            table: (V, 3D), W_ih embedding + b_ih of every token.
            recurrent_weight: (3D, D).
            recurrent_bias: (3D,).
            hidden: (N_0, D), before the first step.
            tokens: (N,) integers, packed.
            sizes: N_0 >= N_1 >= ... > 0, summing to N; with `parents` they need not fall.
            extra: W_ih times what is read besides the token, (N, 3D), or (K, 3D) of the steps
                that read something; None: nothing.
            extra_steps: (K,) packed steps, each at most once; None: all.
            parents: of `Packing`; None: step i goes on from step i of the time before.

        Returns:
            (N, D) packed hidden states after each step.
        """
        width = hidden.shape[1]
        total = tokens.shape[0]
        two = 2 * width
        gate_weight, candidate_weight = recurrent_weight[:two].t(), recurrent_weight[two:].t()
        gates = (table[:, :two] + recurrent_bias[:two]).index_select(0, tokens)  # r, z
        candidate = table[:, two:].index_select(0, tokens)  # n
        if extra is not None:
            for inputs, more in zip((gates, candidate), extra.split([two, width], 1), strict=True):
                if extra_steps is None:
                    inputs += more
                else:
                    inputs.index_add_(0, extra_steps, more)
        before = hidden.new_empty(total, width)
        after = hidden.new_empty(total, width)
        candidate_recurrent = hidden.new_empty(total, width)  # g_n
        start = 0
        for step, size in enumerate(sizes):
            rows = slice(start, start + size)
            previous, gate, new = before[rows], gates[rows], candidate[rows]
            previous.copy_(
                hidden.index_select(0, parents[step - 1]) if parents and step else hidden[:size]
            )
            gate.addmm_(previous, gate_weight).sigmoid_()
            recurrent = candidate_recurrent[rows]
            torch.addmm(recurrent_bias[two:], previous, candidate_weight, out=recurrent)
            tanh_(new.addcmul_(gate[:, :width], recurrent))
            hidden = after[rows]
            torch.lerp(new, previous, gate[:, width:], out=hidden)
            start += size
        ctx.sizes, ctx.vocabulary, ctx.has_extra = sizes, table.shape[0], extra is not None
        ctx.parents = parents
        ctx.save_for_backward(
            recurrent_weight, tokens, before, gates, candidate, candidate_recurrent, extra_steps
        )
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of table, recurrent weight and bias, first hidden state, and extra."""
        (d_after,) = gradients
        weight, tokens, before, gates, candidate, candidate_recurrent, steps = ctx.saved_tensors
        width = before.shape[1]
        # Of i_n, r, z and g_n: the first three are the input's, the last three the recurrence's.
        slopes = gates.new_empty(len(tokens), 4 * width)
        d_input, d_recurrent = slopes[:, : 3 * width], slopes[:, width:]
        carry: Tensor | None = None
        stop = len(tokens)
        # Step by step: what is read again is then still in the cache.
        for step, size in reversed(list(enumerate(ctx.sizes))):
            rows = slice(stop - size, stop)
            reset, update = gates[rows].chunk(2, 1)
            d_new, d_reset, d_update, d_new_recurrent = slopes[rows].chunk(4, 1)
            d_hidden = d_after[rows]
            if carry is not None:
                d_hidden = d_hidden.clone()
                d_hidden[: len(carry)] += carry
            d_before = d_hidden * update
            _tanh_backward(d_hidden - d_before, candidate[rows], grad_input=d_new)
            d_gate = torch.sub(before[rows], candidate[rows]).mul_(d_hidden)
            _sigmoid_backward(d_gate, update, grad_input=d_update)
            torch.mul(d_new, candidate_recurrent[rows], out=d_gate)
            _sigmoid_backward(d_gate, reset, grad_input=d_reset)
            torch.mul(d_new, reset, out=d_new_recurrent)
            carry = d_before = d_before.addmm_(d_recurrent[rows], weight)
            if ctx.parents and step:
                carry = add_to_parents(d_before, ctx.parents[step - 1], ctx.sizes[step - 1])
            stop -= size
        one_hot = functional.one_hot(tokens.long(), ctx.vocabulary).to(d_input.dtype)
        d_table = (one_hot.t() @ d_input).roll(-width, 1)  # to torch's order r, z, n
        # Every step reads one token: the biases of r and z are those of the input.
        d_bias = torch.cat([d_table[:, : 2 * width].sum(0), d_recurrent[:, 2 * width :].sum(0)])
        d_extra = None
        if ctx.has_extra:
            d_extra = d_input if steps is None else d_input.index_select(0, steps)
            d_extra = d_extra.roll(-width, 1)
        return (
            d_table,
            d_recurrent.t() @ before,
            d_bias,
            carry,
            None,
            None,
            d_extra,
            None,
            None,
        )
