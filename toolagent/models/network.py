"""The stage-embedded GRU actor-critic as a plain torch module: no Ray, no environment.

Shapes: B episodes, T steps, L context tokens, A actions, D the width `embedding_size`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolagent.models.packed_gru import PackedGRU
from toolagent.tokens import CTX, EOS, NUM_TOKENS


class NetworkSizes(NamedTuple):
    """Everything that must agree between a checkpoint and the network it is loaded into."""

    context_vocabulary: int
    num_stages: int
    embedding_size: int = 96


class StepTable(NamedTuple):
    """What rollouts compute once per set of weights instead of once per step (`step_table`)."""

    input_gates: Tensor  # (18, 3D): W_ih @ embedding + b_ih of every token
    recurrent_weight: Tensor  # (D, 3D): W_hh transposed
    recurrent_bias: Tensor  # (3D,)
    head_weight: Tensor  # (D, A + 1): policy and value heads side by side
    head_bias: Tensor  # (A + 1,)


class GRUWeights(NamedTuple):
    """The weights of a one-layer `nn.GRU`."""

    weight_ih: Tensor  # (3D, D)
    bias_ih: Tensor  # (3D,)
    weight_hh: Tensor  # (3D, D)
    bias_hh: Tensor  # (3D,)


class StageGRUNetwork(nn.Module):
    """One embedding table for context and action tokens, a stage embedding, a GRU, two heads.

        h_0 = tanh(mean over the problem's own context tokens of embedding + stage embedding)
        h_t = GRU(embedding(previous token), h_{t-1})
        logits_t = W_pi h_t + b_pi,   value_t = w_v . h_t + b_v

    The mean is over the tokens of each problem alone and leaves out the `EOS` padding, so neither
    neighbours in the batch nor a longer padding can change what an episode computes.

    Source: the published tutorial's network (design section 2.6), whose mean ran over the batch.
    """

    def __init__(self, sizes: NetworkSizes):
        super().__init__()
        self.sizes = NetworkSizes(*sizes)
        width = sizes.embedding_size
        self.token_embedding = nn.Embedding(max(sizes.context_vocabulary, NUM_TOKENS), width)
        self.stage_embedding = nn.Embedding(sizes.num_stages, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.policy_head = nn.Linear(width, NUM_TOKENS)
        self.value_head = nn.Linear(width, 1)

    def initial_hidden(self, context: Tensor, stage: Tensor) -> Tensor:
        """The hidden state before the first step.

        Args:
            context: (B, L) integer tokens, `EOS` from the end of the context on.
            stage: (B,) integers.

        Returns:
            (B, D).
        """
        shown = (context != EOS).unsqueeze(-1)  # (B, L, 1)
        embedded = self.token_embedding(context.int()) * shown  # (B, L, D)
        mean = embedded.sum(1) / shown.sum(1).clamp(min=1)  # (B, D)
        return torch.tanh(mean + self.stage_embedding(stage.int()))

    def unroll(self, previous_tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The GRU over whole sequences: what the learner runs.

        Args:
            previous_tokens: (B, T) integers.
            hidden: (B, D), before the first of them.

        Returns:
            (B, T, D) outputs and (B, D), the last of them.
        """
        inputs = self.token_embedding(previous_tokens.int())  # (B, T, D)
        outputs, last = self.gru(inputs, hidden.unsqueeze(0))
        return outputs, last.squeeze(0)

    def unroll_episodes(
        self, context: Tensor, stage: Tensor, actions: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of every step of whole episodes: what the batched learner runs.

        Args:
            context: (B, L) integers.
            stage: (B,) integers.
            actions: (B, T) integers; step t reads action t-1, the first step `CTX`.
            lengths: (B,) integers >= 1: the steps that count.

        Returns:
            (B, T, 18) logits and (B, T) values, 0 at and after an episode's end.
        """
        start = torch.full_like(actions[:, :1], CTX)
        tokens = torch.cat([start, actions[:, :-1]], 1)  # (B, T)
        hidden = self.initial_hidden(context, stage)
        if actions.is_cuda:  # cuDNN runs the whole padded sequence in one kernel
            outputs, _ = self.unroll(tokens, hidden)
            mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
            return self.logits(outputs) * mask.unsqueeze(-1), self.values(outputs) * mask
        order = torch.argsort(lengths, descending=True, stable=True)  # (B,)
        gru = self.gru_weights
        steps = torch.arange(tokens.shape[1])
        alive = lengths[order].unsqueeze(1) > steps  # (B, T), a falling staircase
        sizes = [size for size in alive.sum(0).tolist() if size]
        # Where each packed step stands in the flattened (B, T): time-major, longest first.
        place = (order * tokens.shape[1] + steps.unsqueeze(1))[alive.t()]  # (N,)
        outputs = PackedGRU.apply(
            functional.linear(self.token_embedding.weight[:NUM_TOKENS], gru.weight_ih, gru.bias_ih),
            gru.weight_hh,
            gru.bias_hh,
            hidden[order],
            tokens.reshape(-1)[place].int(),
            sizes,
        )  # (N, D)
        heads = torch.cat([self.logits(outputs), self.value_head(outputs)], 1)  # (N, A + 1)
        flat = heads.new_zeros(tokens.numel(), heads.shape[1]).index_copy(0, place, heads)
        padded = flat.view(*tokens.shape, -1)  # (B, T, A + 1)
        return padded[..., :NUM_TOKENS], padded[..., NUM_TOKENS]

    def logits(self, outputs: Tensor) -> Tensor:
        """(..., D) to (..., 18)."""
        return self.policy_head(outputs)

    def values(self, outputs: Tensor) -> Tensor:
        """(..., D) to (...)."""
        return self.value_head(outputs).squeeze(-1)

    @property
    def gru_weights(self) -> GRUWeights:
        """The GRU's weights under names that say what they are."""
        gru: Any = self.gru  # torch declares a layer's parameters by name only
        return GRUWeights(gru.weight_ih_l0, gru.bias_ih_l0, gru.weight_hh_l0, gru.bias_hh_l0)

    @torch.no_grad()
    def step_table(self) -> StepTable:
        """The constants of `step` for the current weights; make a new one when they change."""
        gru = self.gru_weights
        embedding = self.token_embedding.weight[:NUM_TOKENS]
        weight = torch.cat([self.policy_head.weight, self.value_head.weight])  # (A + 1, D)
        return StepTable(
            input_gates=functional.linear(embedding, gru.weight_ih, gru.bias_ih),
            recurrent_weight=gru.weight_hh.t().contiguous(),
            recurrent_bias=gru.bias_hh.clone(),
            head_weight=weight.t().contiguous(),
            head_bias=torch.cat([self.policy_head.bias, self.value_head.bias]),
        )

    @staticmethod
    @torch.no_grad()
    def step(table: StepTable, previous_token: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        """One step of the same GRU by table look-up: what rollouts run.

        r, z, n are the gates in torch's order (`torch.nn.GRU`):
        n = tanh(i_n + r * h_n);  h' = n + z * (h - n).

        Args:
            table: of the current weights.
            previous_token: (B,) int32 or int64.
            hidden: (B, D).

        Returns:
            logits (B, 18), values (B,), hidden (B, D).
        """
        width = hidden.shape[1]
        inputs = table.input_gates.index_select(0, previous_token)  # (B, 3D)
        recurrent = torch.addmm(table.recurrent_bias, hidden, table.recurrent_weight)  # (B, 3D)
        gates = torch.sigmoid_(inputs[:, : 2 * width] + recurrent[:, : 2 * width])
        reset, update = gates[:, :width], gates[:, width:]
        new = torch.tanh_(torch.addcmul(inputs[:, 2 * width :], reset, recurrent[:, 2 * width :]))
        hidden = torch.lerp(new, hidden, update)
        heads = torch.addmm(table.head_bias, hidden, table.head_weight)  # (B, A + 1)
        return heads[:, :NUM_TOKENS], heads[:, NUM_TOKENS], hidden
