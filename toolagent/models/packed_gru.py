"""The GRU over whole episodes of different lengths, forward and backward written out.

Faster than torch.nn.GRU for this network: the products of the input weights and the 18 embeddings
are computed once, in a table, and nothing is computed for padding: step t runs over the episodes
that have a step t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PackedGRU(torch.autograd.Function):
    """h_t = GRU(x_t, h_{t-1}) over episodes sorted by falling length.

    In torch's gate order, with i = table[token] and g = W_hh h_{t-1} + b_hh:

        r = sigmoid(i_r + g_r)    z = sigmoid(i_z + g_z)    n = tanh(i_n + r * g_n)
        h_t = n + z * (h_{t-1} - n)

    *Packed* means time-major without padding: first the N_0 episodes' step 0, then the N_1
    <= N_0 episodes' step 1, and so on; N steps in all.

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
    ) -> Tensor:
        """Args:
            table: (V, 3D), W_ih embedding + b_ih of every token.
            recurrent_weight: (3D, D).
            recurrent_bias: (3D,).
            hidden: (N_0, D), before the first step.
            tokens: (N,) integers, packed.
            sizes: N_0 >= N_1 >= ... > 0, summing to N.
            extra: (N, 3D), packed: W_ih times what is read besides the token; None: nothing.

        Returns:
            (N, D) packed hidden states after each step.
        """
        width = hidden.shape[1]
        weight = recurrent_weight.t()
        total = tokens.shape[0]
        inputs = table.index_select(0, tokens)  # (N, 3D)
        if extra is not None:
            inputs += extra
        before = hidden.new_empty(total, width)
        after = hidden.new_empty(total, width)
        gates = hidden.new_empty(total, 2 * width)  # r, z
        candidate = hidden.new_empty(total, width)  # n
        candidate_recurrent = hidden.new_empty(total, width)  # g_n
        start = 0
        for size in sizes:
            rows = slice(start, start + size)
            before[rows] = hidden[:size]
            recurrent = torch.addmm(recurrent_bias, before[rows], weight)  # (size, 3D)
            torch.add(inputs[rows, : 2 * width], recurrent[:, : 2 * width], out=gates[rows])
            gates[rows].sigmoid_()
            candidate_recurrent[rows] = recurrent[:, 2 * width :]
            torch.addcmul(
                inputs[rows, 2 * width :],
                gates[rows, :width],
                candidate_recurrent[rows],
                out=candidate[rows],
            )
            candidate[rows].tanh_()
            torch.lerp(candidate[rows], before[rows], gates[rows, width:], out=after[rows])
            hidden = after[rows]
            start += size
        ctx.sizes, ctx.vocabulary, ctx.has_extra = sizes, table.shape[0], extra is not None
        ctx.save_for_backward(
            recurrent_weight, tokens, before, gates, candidate, candidate_recurrent
        )
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of table, recurrent weight and bias, first hidden state, and extra."""
        (d_after,) = gradients
        weight, tokens, before, gates, candidate, candidate_recurrent = ctx.saved_tensors
        width = before.shape[1]
        reset, update = gates[:, :width], gates[:, width:]
        # What does not depend on the order of time is done for all N steps at once.
        d_input = gates.new_empty(len(tokens), 3 * width)
        d_recurrent = torch.empty_like(d_input)
        candidate_slope = (1 - update) * (1 - candidate.square())
        update_slope = (before - candidate) * update * (1 - update)
        reset_slope = candidate_recurrent * reset * (1 - reset)
        carry: Tensor | None = None
        stop = len(tokens)
        for size in reversed(ctx.sizes):
            rows = slice(stop - size, stop)
            d_hidden = d_after[rows].clone()
            if carry is not None:
                d_hidden[: len(carry)] += carry
            d_candidate = d_hidden * candidate_slope[rows]
            d_input[rows, :width] = d_candidate * reset_slope[rows]
            torch.mul(d_hidden, update_slope[rows], out=d_input[rows, width : 2 * width])
            d_input[rows, 2 * width :] = d_candidate
            d_recurrent[rows, : 2 * width] = d_input[rows, : 2 * width]
            torch.mul(d_candidate, reset[rows], out=d_recurrent[rows, 2 * width :])
            carry = torch.addmm(d_hidden * update[rows], d_recurrent[rows], weight)
            stop -= size
        one_hot = torch.nn.functional.one_hot(tokens.long(), ctx.vocabulary).to(d_input.dtype)
        return (
            one_hot.t() @ d_input,
            d_recurrent.t() @ before,
            d_recurrent.sum(0),
            carry,
            None,
            None,
            d_input if ctx.has_extra else None,
        )
