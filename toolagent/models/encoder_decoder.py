"""An encoder-decoder that reads its context in order: for problems whose structure differs.

Shapes: B episodes (P different contexts), T steps, L context tokens, D the width
`embedding_size`, H heads, K counters, A actions.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from toolagent.models.bidirectional_gru import read_both_ways, shown_tokens
from toolagent.models.coordinate_attention import CoordinateAttention
from toolagent.models.packed_gru import GRUTable, gru_step, gru_table, packed_gru
from toolagent.models.packing import (
    Packing,
    one_of_each_run,
    pack,
    pack_episodes,
    unpack,
    unpack_heads,
)
from toolagent.vocabulary import Interface

READINGS = ("learned", "operands")
_PLACE_SCALE = 0.25  # places are up to about 10; the other inputs are about 1
_COPY_SCALE = 2.0  # copying has to be found first, so its gates move faster than other weights
_AS_MANY = 0.6  # at least that share of the most readers that a context has is about as many


class EncoderDecoderOptions(NamedTuple):
    """D, H, K, and what the network is told.

    `reading` is where the decoder's attention goes: "learned" (`CoordinateAttention`), or the
    *operands* in their order, which is a hint. Without `sees_digits` all digits look the same,
    read or written: what is planned follows from the structure of the expression alone, and which
    digit it is matters only where it is copied.
    """

    embedding_size: int = 64
    num_heads: int = 4
    num_counters: int = 4
    reading: str = "learned"
    sees_digits: bool = False


class DecoderTable(NamedTuple):
    """The constants of a decoder's step."""

    gru: GRUTable
    responses: Tensor | None  # of `ResponseInput.table`, where tools answer
    read_weight: Tensor  # (H D + H + K, 3D)
    head_weight: Tensor  # (D, A + 1 + H)
    head_bias: Tensor  # (A + 1 + H,)


class EncoderDecoderNetwork(AgentNetwork):
    """A GRU in each direction over the context; a GRU that writes, reading by place.

        e_j = W_e [forward GRU_j; backward GRU_j] + b_e        of the context's tokens
        h_0 = tanh(W_0 [forward GRU_L; backward GRU_1] + b_0)
        w_th = attention of head h at step t                    (`CoordinateAttention`)
        r_t = [sum_j w_thj e_j for each h; places_t / 4]
        h_t = GRU([embedding(previous token); r_t] [+ response], h_{t-1})
        logits_t = W_pi h_t + b_pi + 2 sum_h g_h(h_t) copy_th,    value_t = w_v . h_t + b_v

    copy_th is the distribution over actions that head h's weights put on the tokens it looks at,
    and g(h_t) = W_g h_t + b_g how much each head's counts: a pointer, so that an operand can be
    copied without a table of digits. The response, where tools answer, is that of `ResponseInput`,
    added to what the gates take in.

    Neighbours in the batch and padding behind the context can't change what is computed. The
    stage is not looked at: a longer expression than any in training is no new stage.

    Sources: Cho et al. 2014 (encoder-decoder GRUs); See et al. 2017, "Get to the point" (copying
    by the weights of the attention).
    """

    Options = EncoderDecoderOptions

    def __init__(self, interface: Interface, options: Any = None):
        super().__init__(interface, options)
        given = self.options
        if given.reading not in READINGS:
            raise ValueError(f"reading is '{given.reading}'; expected one of {', '.join(READINGS)}")
        for name, least in (("embedding_size", 1), ("num_heads", 1), ("num_counters", 0)):
            if getattr(given, name) < least:
                raise ValueError(f"{name} is {getattr(given, name)}; it must be at least {least}")
        width, heads, vocabulary = given.embedding_size, given.num_heads, interface.vocabulary
        digits = [token for token, name in enumerate(vocabulary.names) if name.isdigit()]
        # The first and the last of the tokens that look the same, if there are any.
        self.alike = None if given.sees_digits or not digits else (digits[0], digits[-1])
        if self.alike and digits[-1] - digits[0] + 1 != len(digits):
            raise ValueError("sees_digits must be true: this vocabulary's digits are not in a row")
        self.attention = CoordinateAttention(
            vocabulary, heads, given.num_counters, given.reading == "learned"
        )
        self.context_embedding = nn.Embedding(interface.context_vocabulary, width)
        self.forward_gru = nn.GRUCell(width, width)
        self.backward_gru = nn.GRUCell(width, width)
        self.encoding = nn.Linear(2 * width, width)
        self.summary = nn.Linear(2 * width, width)
        self.token_embedding = nn.Embedding(vocabulary.num_previous_tokens, width)
        self.decoder_gru = nn.GRUCell(width, width)
        self.read_input = nn.Linear(heads * width + self.attention.width, 3 * width, bias=False)
        self.heads = nn.Linear(width, interface.num_actions + 1 + heads)
        self.response_input = ResponseInput(interface, 3 * width)

    # Reading ----------------------------------------------------------------------------------

    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """Reads B problems (see `AgentNetwork`); equal ones that stand side by side only once."""
        encoding, hidden, repeat = self._begin(context)
        if repeat is not None:
            encoding = tuple(part.index_select(0, repeat) for part in encoding)
        return InitialState(encoding, hidden)

    def _begin(self, context: Tensor) -> tuple[Encoding, Tensor, Tensor | None]:
        """Of (B, L) contexts: what is kept of P different ones, and all first states (B, S).

        Returns:
            The encoding, the states, and (B,) which of the P each row reads; None: its own.
        """
        context, repeat = one_of_each_run(context)
        encoding, summary = self._encode(context)
        hidden = torch.cat([summary, self.attention.start.expand(len(context), -1)], 1)
        return encoding, hidden if repeat is None else hidden.index_select(0, repeat), repeat

    def _encode(self, context: Tensor) -> tuple[Encoding, Tensor]:
        """What is kept of (P, L) contexts, and (P, D) the first hidden state.

        Returns:
            memory (P, L, D + A), what a head finds: the encoding and the action it names;
            coordinates (P, H, L) and preferences (P, H, L) of the attention. L ends with the
            longest context.
        """
        context, shown = shown_tokens(context, self.pad_token)
        seen = self._seen(context)
        read = read_both_ways(
            seen, shown, self.context_embedding.weight, self.forward_gru, self.backward_gru
        )
        encoded = self.encoding(read.states)  # (P, L, D)
        summary = torch.tanh(self.summary(read.ends))
        actions = self.interface.num_actions
        named = functional.one_hot(context.clamp(max=actions - 1), actions)
        named = named.to(encoded.dtype) * (context < actions).unsqueeze(-1)
        coordinates, preference = self.attention.place_context(seen, shown)
        return (torch.cat([encoded, named], -1), coordinates, preference), summary

    def _seen(self, tokens: Tensor) -> Tensor:
        """The tokens as they look to the network: all digits the same, unless it `sees_digits`."""
        if self.alike is None:
            return tokens
        first, last = self.alike
        return tokens.masked_fill((tokens >= first) & (tokens <= last), first)

    # Writing ----------------------------------------------------------------------------------

    def _look(self, places: Tensor, encoding: Encoding) -> Tensor:
        """What the heads find at (B, T, H + K) places: (B, T, H, D + A)."""
        memory, coordinates, preference = encoding
        weights = self.attention.weights(places, coordinates, preference)  # (B, T, H, L)
        found = torch.bmm(weights.flatten(1, 2), memory)  # (B, T H, D + A)
        return found.view(*weights.shape[:3], -1)

    def _take_in(self, found: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's input (N, H D + H + K), and copies (N, H, A), of N steps."""
        encoded, copies = found.split([self.options.embedding_size, self.interface.num_actions], -1)
        return torch.cat([encoded.flatten(1), places * _PLACE_SCALE], 1), copies

    def _read_packed(
        self, places: Tensor, encoding: Encoding, reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the heads find at N known steps.

        The steps that read one context are one batch of places. Where they are many, the context's
        tokens are multiplied by the weights of `read_input` before the steps look at them, and not
        what each step finds: the same sum, with fewer products.

        Args:
            places: (N, H + K).
            encoding: of `_begin`.
            reads: (N,) which of the P contexts.

        Returns:
            (N, 3D) inputs to the gates, and (N, H, A) copies.
        """
        width, heads = self.options.embedding_size, self.options.num_heads
        found_weight, places_weight = self.read_input.weight.split(
            [heads * width, self.attention.width], 1
        )
        by_head = found_weight.view(-1, heads, width).transpose(0, 1).flatten(0, 1)  # (H 3D, D)
        inputs, copies, order = [], [], []
        for contexts, members, is_reader in _readers(reads):
            memory, coordinates, preference = (part.index_select(0, contexts) for part in encoding)
            encoded, named = memory.split([width, self.interface.num_actions], -1)
            looking = places.index_select(0, members.flatten())
            looking = looking.view(*members.shape, places.shape[1])  # (P', S, H + K)
            weights = self.attention.weights(looking, coordinates, preference)
            groups, each, _, length = weights.shape  # P', S, H, L
            if each * width > length * (width + each):
                memory = functional.linear(encoded, by_head).view(groups, length, heads, -1)
                memory = memory.transpose(1, 2).flatten(1, 2)  # (P', H L, 3D)
                found = torch.bmm(weights.flatten(2), memory)
            else:
                found = torch.bmm(weights.flatten(1, 2), encoded).view(groups, each, -1)
                found = functional.linear(found, found_weight)
            inputs.append(found.flatten(0, 1))
            copies.append(torch.bmm(weights.flatten(1, 2), named).view(-1, heads, named.shape[2]))
            order.append(members.masked_fill(~is_reader, len(reads)).flatten())
        back = torch.cat(order).argsort(stable=True)[: len(reads)]  # the readers, in order
        by_place = functional.linear(places * _PLACE_SCALE, places_weight)
        return (
            torch.cat(inputs).index_select(0, back) + by_place,
            torch.cat(copies).index_select(0, back),
        )

    def _decode(
        self,
        tokens: Tensor,
        packing: Packing,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None,
        repeat: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All packed steps; `repeat` as of `_begin`.

        Returns:
            Logits with values (N, A + 1), the GRU's states (N, D), and places (B, T, H + K).
        """
        width = self.options.embedding_size
        tokens = self._seen(tokens.long())
        places = self.attention.places(hidden[:, width:], tokens)  # (B, T, H + K)
        row = packing.place // tokens.shape[1]
        extra, copies = self._read_packed(
            places.flatten(0, 1).index_select(0, packing.place),
            encoding,
            row if repeat is None else repeat[row],
        )
        if responses is not None:
            extra = extra + self.response_input(responses.flatten(0, 1)[packing.place])
        gru = self.decoder_gru
        outputs = packed_gru(
            functional.linear(self.token_embedding.weight, gru.weight_ih, gru.bias_ih),
            gru.weight_hh,
            gru.bias_hh,
            hidden[:, :width].index_select(0, packing.order),
            tokens.reshape(-1).index_select(0, packing.place).int(),
            packing.sizes,
            extra,
            parents=packing.parents,
        )  # (N, D)
        return _combine(self.heads(outputs), copies), outputs, places

    def unroll_episodes(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Reads, then writes all steps (see `AgentNetwork`)."""
        tokens, observed = self.shifted(actions, responses)  # (B, T), (B, T, R)
        encoding, hidden, repeat = self._begin(context)
        packing = pack_episodes(context, stage, tokens, lengths, observed)
        heads, _, _ = self._decode(tokens, packing, encoding, hidden, observed, repeat)
        return unpack_heads(heads, packing, self.interface.num_actions, *tokens.shape)

    def unroll(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder over whole sequences (see `AgentNetwork`)."""
        lengths = torch.full((len(hidden),), previous_tokens.shape[1], device=hidden.device)
        packing = pack(lengths, previous_tokens.shape[1])
        heads, outputs, places = self._decode(previous_tokens, packing, encoding, hidden, responses)
        every = unpack(torch.cat([heads, outputs], 1), packing, *previous_tokens.shape)
        logits, values, states = every.split([self.interface.num_actions, 1, outputs.shape[1]], -1)
        hidden = torch.cat([states[:, -1], places[:, -1]], 1)
        return logits, values.squeeze(-1), hidden

    @torch.no_grad()
    def step_table(self) -> DecoderTable:
        """The decoder's constants (see `AgentNetwork`)."""
        return DecoderTable(
            gru=gru_table(self.token_embedding.weight, self.decoder_gru),
            responses=self.response_input.step_table(),
            read_weight=self.read_input.weight.t().contiguous(),
            head_weight=self.heads.weight.t().contiguous(),
            head_bias=self.heads.bias.clone(),
        )

    @torch.no_grad()
    def step(
        self,
        table: DecoderTable,
        previous_token: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        response: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the decoder by table look-up (see `AgentNetwork`)."""
        width = self.options.embedding_size
        previous_token = self._seen(previous_token)
        places = hidden[:, width:] + self.attention.write_steps[previous_token]  # (B, H + K)
        read, copies = self._take_in(self._look(places.unsqueeze(1), encoding)[:, 0], places)
        inputs = torch.addmm(
            table.gru.inputs.index_select(0, previous_token), read, table.read_weight
        )  # (B, 3D)
        if response is not None:
            self.response_input.add_to(inputs, table.responses, response)
        state = gru_step(table.gru, inputs, hidden[:, :width])
        heads = torch.addmm(table.head_bias, state, table.head_weight)  # (B, A + 1 + H)
        heads = _combine(heads, copies)
        return heads[:, :-1], heads[:, -1], torch.cat([state, places], 1)


def _readers(reads: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Who reads which context: contexts with about as many readers together.

    Args:
        reads: (N,) which context each reads.

    Returns:
        (P',) contexts; (P', S) readers of each; (P', S) bool, which of these are readers: the
        others repeat the last one.
    """
    counts, order = torch.bincount(reads), reads.argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    counts, contexts = counts.sort(descending=True, stable=True)
    fewest, sizes = None, []
    for count in counts.tolist():
        if not count:
            break
        if fewest is None or count < fewest:
            fewest = count * _AS_MANY
            sizes.append(0)
        sizes[-1] += 1
    kept = sum(sizes)
    for group, count in zip(contexts[:kept].split(sizes), counts[:kept].split(sizes), strict=True):
        step = torch.arange(int(count[0]), device=reads.device)
        members = firsts[group].unsqueeze(1) + torch.minimum(step, count.unsqueeze(1) - 1)
        yield group, order[members], step < count.unsqueeze(1)


def _combine(heads: Tensor, copies: Tensor) -> Tensor:
    """Logits and values (N, A + 1) of N steps: see `EncoderDecoderNetwork`."""
    logits, values, gates = heads.split([copies.shape[2], 1, copies.shape[1]], 1)
    copied = (gates.unsqueeze(2) * copies).sum(1)  # (N, A)
    return torch.cat([logits + _COPY_SCALE * copied, values], 1)
