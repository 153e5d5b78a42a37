"""The stage-embedded GRU actor-critic as a plain torch module: no Ray, no environment.

Shapes: B episodes, T steps, L context tokens, A actions, D the width `embedding_size`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolagent.models.base import (
    AgentNetwork,
    Encoding,
    InitialState,
    ResponseInput,
)
from toolagent.models.packed_gru import GRUTable, GRUWeights, gru_step, gru_table, packed_gru
from toolagent.models.packing import Packing, pack, pack_episodes, unpack_heads
from toolagent.vocabulary import Interface

_LANES = 16  # numbers of type float in a CPU's vector


class StepTable(NamedTuple):
    """What rollouts compute once per set of weights instead of once per step (`step_table`)."""

    gru: GRUTable
    responses: Tensor | None  # of `ResponseInput.table`, where tools answer
    head_weight: Tensor  # (D, W): policy and value heads side by side (`_heads`)
    head_bias: Tensor  # (W,)


class StageGRUNetwork(AgentNetwork):
    """One embedding table for context and action tokens, a stage embedding, a GRU, two heads.

        h_0 = tanh(mean over the problem's own context tokens of embedding + stage embedding)
        h_t = GRU(embedding(previous token) [+ response], h_{t-1})
        logits_t = W_pi h_t + b_pi,   value_t = w_v . h_t + b_v

    The response, where tools answer, is that of `ResponseInput`, added to what the gates take in.
    The mean is over the tokens of each problem alone and leaves out the padding, so neither
    neighbours in the batch nor a longer padding can change what an episode computes.

    Source: the published tutorial's network, whose mean ran over the batch.
    """

    class Options(NamedTuple):
        """D."""

        embedding_size: int = 96

    def __init__(self, interface: Interface, options: Any = None):
        super().__init__(interface, options)
        width = self.options.embedding_size
        if width < 1:
            raise ValueError(f"embedding_size is {width}; it must be at least 1")
        self.token_embedding = nn.Embedding(interface.context_vocabulary, width)
        self.stage_embedding = nn.Embedding(interface.num_stages, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.policy_head = nn.Linear(width, interface.num_actions)
        self.value_head = nn.Linear(width, 1)
        self.response_input = ResponseInput(interface, 3 * width)

    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """The context is summed up in the hidden state; nothing else is kept of it."""
        return InitialState((), self.initial_hidden(context, stage))

    def initial_hidden(self, context: Tensor, stage: Tensor) -> Tensor:
        """The hidden state before the first step.

        Args:
            context: (B, L) integer tokens, `pad_token` from the end of the context on.
            stage: (B,) integers.

        Returns:
            (B, D).
        """
        weight = self.token_embedding.weight  # (V, D)
        shown = (context != self.pad_token).to(weight.dtype)  # (B, L)
        # The embeddings' sum as a product: how often each token stands there, times the table.
        # (An export keeps `shape[0]` open, where `len` would fix the number of rows.)
        counts = shown.new_zeros(context.shape[0], weight.shape[0])
        counts = counts.scatter_add(1, context.long(), shown)  # (B, V)
        mean = counts @ weight / shown.sum(1, keepdim=True).clamp(min=1)  # (B, D)
        return torch.tanh(mean + self.stage_embedding(stage.int()))

    def unroll(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The GRU over whole sequences (see `AgentNetwork`)."""
        if responses is not None:  # torch's GRU takes no input besides its weights' own
            rows, steps = previous_tokens.shape
            lengths = torch.full((rows,), steps, device=hidden.device)
            outputs = self._packed(previous_tokens, hidden, pack(lengths, steps), responses)
            outputs = outputs.view(steps, rows, -1).transpose(0, 1)
            return self.logits(outputs), self.values(outputs), outputs[:, -1]
        inputs = self.token_embedding(previous_tokens.int())  # (B, T, D)
        outputs, last = self.gru(inputs, hidden.unsqueeze(0))
        return self.logits(outputs), self.values(outputs), last.squeeze(0)

    def unroll_episodes(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The packed GRU over whole episodes (see `AgentNetwork`)."""
        if actions.is_cuda:  # cuDNN runs the whole padded sequence in one kernel
            return super().unroll_episodes(context, stage, actions, lengths, responses)
        tokens, observed = self.shifted(actions, responses)
        hidden = self.initial_hidden(context, stage)
        packing = pack_episodes(context, stage, tokens, lengths, observed)
        outputs = self._packed(tokens, hidden, packing, observed)
        heads = functional.linear(outputs, *self._heads())  # (N, W)
        return unpack_heads(heads, packing, self.interface.num_actions, *tokens.shape)

    def _packed(
        self, tokens: Tensor, hidden: Tensor, packing: Packing, responses: Tensor | None
    ) -> Tensor:
        """The hidden state (N, D) after each of the packed steps."""
        gru = self.gru_weights
        return packed_gru(
            functional.linear(self._read_embedding(), gru.weight_ih, gru.bias_ih),
            gru.weight_hh,
            gru.bias_hh,
            hidden.index_select(0, packing.order),
            tokens.reshape(-1).index_select(0, packing.place).int(),
            packing.sizes,
            *self.response_input.packed(responses, packing.place),
            parents=packing.parents,
        )

    def _read_embedding(self) -> Tensor:
        """The embeddings of the tokens that a step may read: actions, and the first step's."""
        return self.token_embedding.weight[: self.interface.vocabulary.num_previous_tokens]

    def _heads(self) -> tuple[Tensor, Tensor]:
        """Policy and value heads side by side: weight (W, D) and bias (W,).

        W is A + 1 rounded up to whole vectors of a CPU, and what is behind A + 1 is 0: a product
        of 16 columns takes a third of the time of one of 15.
        """
        policy, value = self.policy_head, self.value_head
        weight = torch.cat([policy.weight, value.weight])
        added = -len(weight) % _LANES
        bias = torch.cat([policy.bias, value.bias])
        return functional.pad(weight, (0, 0, 0, added)), functional.pad(bias, (0, added))

    def _split(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """(..., W) to logits (..., A) and values (...)."""
        actions = self.interface.num_actions
        return heads[..., :actions], heads[..., actions]

    def logits(self, outputs: Tensor) -> Tensor:
        """(..., D) to (..., A)."""
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
        weight, bias = self._heads()
        return StepTable(
            gru=gru_table(self._read_embedding(), self.gru_weights),
            responses=self.response_input.step_table(),
            head_weight=weight.t().contiguous(),
            head_bias=bias,
        )

    @torch.no_grad()
    def step(
        self,
        table: StepTable,
        previous_token: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        response: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the same GRU by table look-up (see `AgentNetwork`)."""
        inputs = table.gru.inputs.index_select(0, previous_token)  # (B, 3D)
        if response is not None:
            self.response_input.add_to(inputs, table.responses, response)
        hidden = gru_step(table.gru, inputs, hidden)
        heads = torch.addmm(table.head_bias, hidden, table.head_weight)  # (B, W)
        return *self._split(heads), hidden
