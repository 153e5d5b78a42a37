"""A GRU in each direction over contexts of different lengths: what two networks read with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolagent.models.packed_gru import packed_gru
from toolagent.models.packing import pack, unpack


class ReadContexts(NamedTuple):
    """The states of two GRUs of width D over (P, L) contexts."""

    states: Tensor  # (P, L, 2D): forward and backward; behind an end they mean nothing
    ends: Tensor  # (P, 2D): the forward GRU's last state, the backward GRU's at the first token


def shown_tokens(context: Tensor, pad_token: int) -> tuple[Tensor, Tensor]:
    """Contexts up to the longest one's end.

    Args:
        context: (P, L) integers, `pad_token` from the end of the context on.
        pad_token: of a context that shows nothing one is read.

    Returns:
        (P, L') int64 tokens and (P, L') bool, the ones that count.
    """
    shown = context != pad_token
    shown[:, 0] = True
    length = int(shown.sum(1).max())
    return context[:, :length].long(), shown[:, :length]


def read_both_ways(
    tokens: Tensor, shown: Tensor, embedding: Tensor, forward: nn.GRUCell, backward: nn.GRUCell
) -> ReadContexts:
    """Reads (P, L) contexts; neither the padding nor the others change what is read of one.

    Args:
        tokens: (P, L) integers.
        shown: (P, L) bool: the tokens that count, at least one in a row, from the first on.
        embedding: (V, W) of every token.
        forward: reads from the first token on; input W, width D.
        backward: reads from the last one that counts on; input W, width D.
    """
    rows, length = tokens.shape
    lengths = shown.sum(1)
    packing = pack(lengths, length)
    start = embedding.new_zeros(rows, forward.hidden_size)

    def run(gru: nn.GRUCell, sequence: Tensor) -> Tensor:
        packed = packed_gru(
            functional.linear(embedding, gru.weight_ih, gru.bias_ih),
            gru.weight_hh,
            gru.bias_hh,
            start,
            sequence.reshape(-1).index_select(0, packing.place).int(),
            packing.sizes,
        )
        return unpack(packed, packing, rows, length)  # (P, L, D)

    # Position j from the end: each context is turned round within its own length.
    turned = (lengths.unsqueeze(1) - 1 - torch.arange(length, device=tokens.device)).clamp(0)
    ahead = run(forward, tokens)
    back = run(backward, tokens.gather(1, turned))
    back = back.gather(1, turned.unsqueeze(-1).expand(-1, -1, back.shape[2]))
    last = ahead[torch.arange(rows, device=tokens.device), lengths - 1]
    return ReadContexts(torch.cat([ahead, back], -1), torch.cat([last, back[:, 0]], 1))
