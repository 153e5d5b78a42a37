"""A network that looks at its prompt and at the answers it got: for tasks whose tools answer.

Shapes: B episodes (P different contexts), T steps, N steps that count, L context tokens, D the
width `embedding_size`, H heads, W the width of keys and of values, A actions, V tokens, R tokens
of a response, K answers that are kept, M tokens of answers in a batch's longest row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolagent.models.base import (
    AgentNetwork,
    AttentionWeights,
    Encoding,
    InitialState,
    ResponseInput,
)
from toolagent.models.bidirectional_gru import ReadContexts, read_both_ways, shown_tokens
from toolagent.models.packed_gru import GRUTable, gru_step, gru_table, packed_gru, tanh_
from toolagent.models.packing import (
    Packing,
    one_of_each_run,
    pack,
    pack_episodes,
    unpack,
    unpack_heads,
)
from toolagent.models.softmax import short_softmax
from toolagent.vocabulary import Interface

_COPY_SCALE = 2.0  # copying has to be found first, so its gates move faster than other weights
_KEY_SIZE = 16  # W, of keys and of values
_QUERY_SCALE = _KEY_SIZE**-0.5  # else weights are soon 0 or 1, and have no gradient
_UNSEEN = -1e9  # a score that no weight survives
_NO_TOKEN = -1
_ROWS_AT_ONCE = 128  # episodes of about the same length that look together


class AnswerAttentionOptions(NamedTuple):
    """D, the width of each GRU that reads the context, H, what the network is told, and K.

    Without `sees_digits` all digits of a context, and all that were written, look the same: what
    is done follows from the structure of the prompt, and which digit it is matters only where it
    is copied. Those of answers are seen.

    When `num_answers` are kept, the next one takes the place of the oldest.
    """

    embedding_size: int = 128
    context_size: int = 48
    num_heads: int = 4
    sees_digits: bool = False
    num_answers: int = 12


class StepTable(NamedTuple):
    """The constants of a step."""

    gru: GRUTable
    responses: Tensor | None  # of `ResponseInput.table`, where tools answer
    query_weight: Tensor  # (D, H W)
    query_bias: Tensor  # (H W,)
    answer_keys: Tensor  # (W, V + K): of tokens, and of numbers from the newest
    cell_keys: Tensor  # (W, K R): of place and number from the first, of each token kept
    token_values: Tensor  # (V, W + A): the values, and which action the token is
    cell_values: Tensor  # (K R, W): those of the places
    state_weight: Tensor  # (D, D): of the read-out
    found_weight: Tensor  # (H W, D)
    read_out_bias: Tensor  # (D,)
    head_weight: Tensor  # (D, A + 1 + H)
    head_bias: Tensor  # (A + 1 + H,)


class _AnswerTokens(NamedTuple):
    """The tokens of the answers of each episode, in the order in which they were seen."""

    tokens: Tensor  # (B, M)
    before: Tensor  # (B, M) the token before each in its answer; `_NO_TOKEN` at its first place
    places: Tensor  # (B, M) in their answer
    numbers: Tensor  # (B, M) which answer of the episode, 0 is the first; behind the last: huge
    steps: Tensor  # (B, M) the step at which they are seen first; 0 if before these steps
    seen: Tensor  # (B, T) how many answers were seen up to each step

    def of_rows(self, rows: slice, steps: int) -> _AnswerTokens:
        """Those of some rows and their first steps, as wide as these rows need."""
        tokens, before, places, numbers, when, seen = (part[rows] for part in self)
        most = int((when != _NO_TOKEN).sum(1).max())
        parts = (part[:, :most] for part in (tokens, before, places, numbers, when))
        return _AnswerTokens(*parts, seen=seen[:, :steps])


class _Decoded(NamedTuple):
    """All N packed steps of known episodes, and where B' of these looked (see `_Looking`)."""

    heads: Tensor  # (N, A + 1 + H) logits, values and gates
    outputs: Tensor  # (N, D) the GRU's states
    order: Tensor  # (B',)
    weights: list[Tensor]  # (b, T' H, L + M') of each group of rows in that order
    answers: _AnswerTokens | None  # of all rows in that order


class _Together(NamedTuple):
    """Episodes that have about as many packed steps: rows that follow each other in an order."""

    rows: slice  # (b,)
    steps: int  # T', of the one that has most
    packed: Tensor  # (n,) their packed steps, episode by episode
    flat: Tensor  # (n,) where those stand in the flattened (b, T')


class _Looking(NamedTuple):
    """The packed steps by episode; where episodes share steps, by the one they are packed of."""

    order: Tensor  # (B',) the episodes that have any, by falling number
    first: Tensor  # (B',) the first step of each; the others follow it
    groups: list[_Together]  # of rows in that order


def _looking(packing: Packing, steps: int, rows_at_once: int) -> _Looking:
    """Of (B, `steps`) episodes: what is computed of T' steps each is computed for few that are
    none."""
    row, step = packing.place // steps, packing.place % steps
    counts = torch.bincount(row)
    packed = row.argsort(stable=True)  # by row, then by step
    firsts = counts.cumsum(0) - counts
    order = counts.argsort(descending=True, stable=True)
    order = order[: int((counts > 0).sum())]
    counts, firsts = counts[order], firsts[order]
    column = torch.arange(int(counts[0]), device=row.device)
    groups = []
    for start in range(0, len(order), rows_at_once):
        rows = slice(start, min(start + rows_at_once, len(order)))
        most = int(counts[start])
        alive = column[:most] < counts[rows].unsqueeze(1)  # (b, T')
        at = (firsts[rows].unsqueeze(1) + column[:most])[alive]
        groups.append(_Together(rows, most, packed[at], alive.flatten().nonzero().squeeze(1)))
    return _Looking(order, step[packed[firsts]], groups)


class AnswerAttentionNetwork(AgentNetwork):
    """A GRU that writes, and heads that look at the context and at the answers seen so far.

        e_j = [forward GRU_j; backward GRU_j]                        of the context's tokens
        h_0 = tanh(W_0 [forward GRU_L; backward GRU_1] + b_0)
        h_t = GRU(embedding(previous token) [+ response], h_{t-1})
        q_th = (W_h h_t + b_h) / sqrt(W)
        k_j = W_k e_j + c[x_j]                                       of a context token x_j
        k_i = a[y_i] + p[place in its answer] + f[first, second, ...] + n[newest, one before, ...]
                                                                     of a token y_i of an answer
        w_th = softmax over all j and i of (q_th . k + b_h [the token before is the previous token])
        found_th = sum_j w_thj v_j + sum_i w_thi v_i                 values are made like keys
        o_t = tanh(W_o [h_t; found_t1; ...; found_tH] + b_o)
        logits_t = W_pi o_t + b_pi + 2 sum_h g_h(o_t) copy_th,       value_t = w_v . o_t + b_v

    copy_th is the distribution over actions that head h's weights put on the tokens it looks at,
    and g(o_t) = log(1 + exp(W_g o_t + b_g)) how much each head's counts. It is never negative: a
    head that votes against tokens would be taught to look away from the right one. b_h, one number
    for context and one for answers, starts at 1: who has copied a token finds the one behind it. f
    is by the number of the answer modulo K. Values of answer tokens have no part for an answer's
    number.

    What is remembered of the answers is their tokens: a response with at least one token that is
    an action is kept as it is (others hold nothing that can be written). The newest K are there.
    Nothing that the heads find goes back into the GRU, so over known episodes the GRU runs first
    and all steps look at once.

    The state is, side by side, "gru": h_t; "answers": K R tokens (`pad_token` where nothing was
    kept yet; answer number i is at i modulo K) and the number of answers so far, small integers.

    Neighbours in the batch and padding behind the context can't change what is computed. The
    stage is not looked at.

    Sources: Cho et al. 2014 (GRU); Bahdanau et al. 2015 (attention); See et al. 2017, "Get to the
    point" (copying by the weights of the attention); Shazeer 2019 (heads share keys and values).
    """

    Options: Any = AnswerAttentionOptions

    def __init__(self, interface: Interface, options: Any = None):
        super().__init__(interface, options)
        for name in self.options._fields:
            if name != "sees_digits" and getattr(self.options, name) < 1:
                raise ValueError(f"{name} is {getattr(self.options, name)}; it must be at least 1")
        width, reading, heads, sees_digits = self.options[:4]
        vocabulary, tokens = interface.vocabulary, interface.context_vocabulary
        self.num_kept = self._num_answers() if interface.response_length else 0
        both = 2 * _KEY_SIZE  # keys and values side by side
        self.context_embedding = nn.Embedding(tokens, reading)
        self.forward_gru = nn.GRUCell(reading, reading)
        self.backward_gru = nn.GRUCell(reading, reading)
        self.summary = nn.Linear(2 * reading, width)
        self.context_read = nn.Linear(2 * reading, both)
        self.context_tokens = _table(tokens, both)
        self.token_embedding = nn.Embedding(vocabulary.num_previous_tokens, width)
        self.decoder_gru = nn.GRUCell(width, width)
        self.response_input = ResponseInput(interface, 3 * width)
        self.query = nn.Linear(width, heads * _KEY_SIZE)
        self.follows_context = nn.Parameter(torch.ones(heads))
        self.read_out = nn.Linear(width + heads * _KEY_SIZE, width)
        self.heads = nn.Linear(width, interface.num_actions + 1 + heads)
        with torch.no_grad():  # at first a copy is no more than a hint
            self.heads.bias[interface.num_actions + 1 :] -= 0.5
        if self.num_kept:
            self.follows_answer = nn.Parameter(torch.ones(heads))
            self.answer_tokens = _table(tokens, both)
            self.answer_places = _table(interface.response_length, both)
            self.from_first = _table(self.num_kept, _KEY_SIZE)
            self.from_newest = _table(self.num_kept, _KEY_SIZE)
        # Which token each looks like.
        names = vocabulary.names
        digits = [token for token, name in enumerate(names) if name.isdigit()]
        looks_like = torch.arange(tokens)
        if digits and not sees_digits:
            looks_like[digits] = digits[0]
        self.register_buffer("looks_like", looks_like, persistent=False)
        # Row v: which action token v is; of one that can't be written, none.
        copied = torch.eye(tokens, interface.num_actions)
        self.register_buffer("copied", copied, persistent=False)

    copied: Tensor  # (V, A)
    looks_like: Tensor  # (V,) int64

    def context_tables(self) -> tuple[Tensor, Tensor]:
        """The embeddings (V, ...) of a context's tokens, and what each adds to key and value."""
        return self.context_embedding.weight[self.looks_like], self.context_tokens[self.looks_like]

    def _token_table(self) -> Tensor:
        """(previous tokens, D): the embeddings of what was written."""
        written = self.looks_like[: self.token_embedding.num_embeddings]
        return self.token_embedding.weight[written]

    def _num_answers(self) -> int:
        """K, where tools answer."""
        return self.options.num_answers

    @property
    def state_parts(self) -> dict[str, slice]:
        """(see `AgentNetwork`)"""
        width = self.options.embedding_size
        parts = {"gru": slice(0, width)}
        if self.num_kept:
            parts["answers"] = slice(width, self.hidden_size)
        return parts

    # Reading ----------------------------------------------------------------------------------

    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """Reads B problems; equal ones that stand side by side only once (see `AgentNetwork`).

        Returns:
            The encoding: keys (B, W, L), values with copies (B, L, W + A), the token before each
            (B, L) and the scores that hide the padding (B, 1, L); L ends with the longest context.
        """
        context, repeat = one_of_each_run(context)
        tokens, shown = shown_tokens(context, self.pad_token)
        embedding, _ = self.context_tables()
        read = read_both_ways(tokens, shown, embedding, self.forward_gru, self.backward_gru)
        state = self.initial_state(tokens, shown, read)
        if repeat is None:
            return state
        encoding = tuple(part.index_select(0, repeat) for part in state.encoding)
        return InitialState(encoding, state.hidden.index_select(0, repeat))

    def initial_state(self, tokens: Tensor, shown: Tensor, read: ReadContexts) -> InitialState:
        """What `begin` returns of contexts that the two GRUs have read: (P, L) tokens, and (P, L)
        bool, the ones that count."""
        added = self.context_tables()[1]
        both = self.context_read(read.states) + functional.embedding(tokens, added)
        keys, values = both.split(_KEY_SIZE, -1)
        before = functional.pad(tokens[:, :-1], (1, 0), value=_NO_TOKEN)
        hidden_scores = values.new_zeros(shown.shape).masked_fill(~shown, _UNSEEN).unsqueeze(1)
        first = torch.tanh(self.summary(read.ends))
        encoding = (
            keys.transpose(1, 2),
            torch.cat([values, self.copied[tokens]], -1),
            before,
            hidden_scores,
        )
        hidden = torch.cat([first, self._no_answers(first.shape[0], first)], 1)
        return InitialState(encoding, hidden)

    def _no_answers(self, rows: int, like: Tensor) -> Tensor:
        """The part "answers" of the state before the first one, (rows, K R + 1) or (rows, 0)."""
        if not self.num_kept:
            return like.new_empty(rows, 0)
        width = self.num_kept * self.interface.response_length + 1
        answers = like.new_full((rows, width), self.pad_token)
        answers[:, -1] = 0.0
        return answers

    # What is remembered of the answers ----------------------------------------------------------

    def _is_kept(self, responses: Tensor) -> Tensor:
        """(...) bool, of (..., R) tokens: one of them at least can be written."""
        can_be_written = (responses < self.interface.num_actions) & (responses != self.pad_token)
        return can_be_written.any(-1)

    def _remember(self, hidden: Tensor, response: Tensor) -> None:
        """Puts (B, R) responses into the states (B, S), in place."""
        if torch.compiler.is_exporting():
            self._remember_anywhere(hidden, response)
            return
        rows = self._is_kept(response).nonzero().squeeze(1)
        if not len(rows):
            return
        length, width = self.interface.response_length, self.options.embedding_size
        number = hidden[rows, -1]  # (k,)
        first = width + number.long() % self.num_kept * length
        places = first.unsqueeze(1) + torch.arange(length, device=hidden.device)
        hidden[rows.unsqueeze(1), places] = response[rows].to(hidden.dtype)
        hidden[rows, -1] = number + 1

    def _remember_anywhere(self, hidden: Tensor, response: Tensor) -> None:
        """`_remember` without a shape that depends on the values, which no graph can have."""
        is_kept = self._is_kept(response).unsqueeze(1)  # (B, 1)
        answers = hidden[:, self.options.embedding_size :]
        slots = answers[:, :-1].unflatten(1, (self.num_kept, -1))  # (B, K, R)
        next_slot = answers[:, -1:].long() % self.num_kept
        is_written = is_kept & (torch.arange(self.num_kept, device=hidden.device) == next_slot)
        written = torch.where(
            is_written.unsqueeze(2), response.unsqueeze(1).to(hidden.dtype), slots
        )
        answers.copy_(torch.cat([written.flatten(1), answers[:, -1:] + is_kept], 1))

    def _gather_answers(
        self, hidden: Tensor, responses: Tensor | None, steps: int
    ) -> _AnswerTokens:
        """The tokens of the answers in the states (B, S) and of those observed in T steps.

        Args:
            hidden: before the first step.
            responses: (B, T, R) observed; None: nothing.
            steps: T.
        """
        rows, length, kept = len(hidden), self.interface.response_length, self.num_kept
        grid = hidden[:, self.options.embedding_size :].detach().long()
        number = grid[:, -1:]  # (B, 1) answers before
        device = hidden.device
        parts = []
        if old := int(number.clamp(max=kept).max()):  # the oldest first
            slots = (number - old + torch.arange(old, device=device)) % kept
            earlier = grid[:, :-1].view(rows, kept, length)
            parts.append(earlier.gather(1, slots.unsqueeze(-1).expand(-1, -1, length)))
        if responses is not None:
            parts.append(responses.long())
        answers = torch.cat(parts, 1) if parts else grid.new_empty(rows, 0, length)
        is_kept = self._is_kept(answers)  # (B, old + T)
        total = is_kept.cumsum(1)
        filled = total[:, old - 1 : old] if old else torch.zeros_like(number)
        numbers = total - 1 + (number - filled)
        seen = numbers[:, old:] + 1 if responses is not None else number.expand(-1, steps)
        holds = (is_kept.unsqueeze(-1) & (answers != self.pad_token)).flatten(1)
        row, cell = holds.nonzero(as_tuple=True)
        column = (holds.cumsum(1) - 1)[row, cell]
        most = int(column.max()) + 1 if len(column) else 0
        when, place = cell // length, cell % length
        before = functional.pad(answers[..., :-1], (1, 0), value=_NO_TOKEN)

        def compact(values: Tensor, empty: int) -> Tensor:
            return values.new_full((rows, most), empty).index_put((row, column), values)

        return _AnswerTokens(
            tokens=compact(answers.flatten(1)[row, cell], self.pad_token),
            before=compact(before.flatten(1)[row, cell], _NO_TOKEN),
            places=compact(place, 0),
            numbers=compact(numbers[row, when], torch.iinfo(torch.int32).max),
            steps=compact((when - old).clamp(min=0), _NO_TOKEN),
            seen=seen,
        )

    # All steps at once --------------------------------------------------------------------------

    def _write(
        self, tokens: Tensor, packing: Packing, hidden: Tensor, responses: Tensor | None
    ) -> Tensor:
        """The GRU's state (N, D) after each of the packed steps."""
        gru = self.decoder_gru
        return packed_gru(
            functional.linear(self._token_table(), gru.weight_ih, gru.bias_ih),
            gru.weight_hh,
            gru.bias_hh,
            hidden[:, : self.options.embedding_size].index_select(0, packing.order),
            tokens.reshape(-1).index_select(0, packing.place).int(),
            packing.sizes,
            *self.response_input.packed(responses, packing.place),
            parents=packing.parents,
        )

    def _look(
        self, queries: Tensor, tokens: Tensor, encoding: Encoding, answers: _AnswerTokens | None
    ) -> tuple[Tensor, Tensor]:
        """Where all steps look, and what they find.

        Args:
            queries: (B, T, H W).
            tokens: (B, T) the previous token of each.
            encoding: of `begin`.
            answers: what there is to be looked at besides; None: nothing.

        Returns:
            weights (B, T H, L + M), and found values with copies (B, T H, W + A).
        """
        keys, values, before, hidden_scores = encoding
        rows, steps = tokens.shape
        queries = queries.reshape(rows, -1, _KEY_SIZE)  # (B, T H, W)

        def prefer(scores: Tensor, before: Tensor, strength: Tensor) -> Tensor:
            follows = (before.unsqueeze(1) == tokens.unsqueeze(2)).unsqueeze(2)  # (B, T, 1, L)
            scores = scores.view(rows, steps, -1, before.shape[1])
            return torch.addcmul(scores, follows.to(scores.dtype), strength.unsqueeze(1))

        scores = prefer(torch.baddbmm(hidden_scores, queries, keys), before, self.follows_context)
        if answers is not None and answers.tokens.shape[1]:
            both = functional.embedding(answers.tokens, self.answer_tokens)
            both = both + functional.embedding(answers.places, self.answer_places)
            answer_keys, answer_values = both.split(_KEY_SIZE, -1)  # (B, M, W)
            first = answers.numbers % self.num_kept
            answer_keys = answer_keys + functional.embedding(first, self.from_first)
            # Behind the numbers from the newest: a score for those that are not there.
            numbers = functional.pad(self.from_newest, (0, 0, 0, 1))
            bias = numbers.new_zeros(len(numbers))
            bias[-1] = _UNSEEN
            by_number = functional.linear(queries, numbers, bias).view(rows, steps, -1, len(bias))
            number = answers.seen.unsqueeze(2) - 1 - answers.numbers.unsqueeze(1)  # (B, T, M)
            number = number.masked_fill((number < 0) | (number >= self.num_kept), self.num_kept)
            number = number.unsqueeze(2).expand(-1, -1, by_number.shape[2], -1)
            answer_scores = prefer(
                torch.bmm(queries, answer_keys.transpose(1, 2)), answers.before, self.follows_answer
            )
            scores = torch.cat([scores, answer_scores + by_number.gather(3, number)], -1)
            copied = self.copied[answers.tokens]
            values = torch.cat([values, torch.cat([answer_values, copied], -1)], 1)
        weights = short_softmax(scores).flatten(1, 2)  # (B, T H, L + M)
        return weights, torch.bmm(weights, values)

    def _decode(
        self,
        tokens: Tensor,
        packing: Packing,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None,
        rows_at_once: int = _ROWS_AT_ONCE,
    ) -> _Decoded:
        """All packed steps of known episodes."""
        tokens, steps = tokens.long(), tokens.shape[1]
        outputs = self._write(tokens, packing, hidden, responses)
        order, first, groups = _looking(packing, steps, rows_at_once)
        own = first.unsqueeze(1) + torch.arange(groups[0].steps, device=tokens.device)
        own = own.clamp(max=steps - 1)  # (B', T'): an episode's own steps, and no steps behind them
        step_order = torch.cat([group.packed for group in groups])
        queried = outputs.index_select(0, step_order)
        tokens = tokens.index_select(0, order).gather(1, own)
        encoding = tuple(part.index_select(0, order) for part in encoding)
        sizes = [group.rows.stop - group.rows.start for group in groups]
        encodings = zip(*(part.split(sizes) for part in encoding), strict=True)
        answers = None
        if self.num_kept:
            observed = None if responses is None else responses.index_select(0, order)
            answers = self._gather_answers(hidden.index_select(0, order), observed, steps)
            answers = answers._replace(seen=answers.seen.gather(1, own))
        queries = (self.query(queried) * _QUERY_SCALE).split([len(group.flat) for group in groups])
        weights, found = [], []
        for group, query, seen in zip(groups, queries, encodings, strict=True):
            rows, most = group.rows.stop - group.rows.start, group.steps
            padded = query.new_zeros(rows * most, query.shape[1]).index_copy(0, group.flat, query)
            weight, looked = self._look(
                padded.view(rows, most, -1),
                tokens[group.rows, :most],
                seen,
                None if answers is None else answers.of_rows(group.rows, most),
            )
            weights.append(weight)
            found.append(looked.reshape(rows * most, -1).index_select(0, group.flat))
        looked = torch.cat(found).index_select(0, step_order.argsort())
        looked = looked.view(len(outputs), self.options.num_heads, -1)
        values, copies = looked.split([_KEY_SIZE, self.interface.num_actions], -1)
        read = torch.tanh(self.read_out(torch.cat([outputs, values.flatten(1)], 1)))
        heads = _combine(self.heads(read), copies)
        return _Decoded(heads, outputs, order, weights, answers)

    def unroll_episodes(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Reads, then writes all steps (see `AgentNetwork`)."""
        tokens, observed = self.shifted(actions, responses)
        encoding, hidden = self.begin(context, stage)
        packing = pack_episodes(context, stage, tokens, lengths, observed)
        decoded = self._decode(tokens, packing, encoding, hidden, observed)
        return unpack_heads(decoded.heads, packing, self.interface.num_actions, *tokens.shape)

    def unroll(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whole sequences (see `AgentNetwork`)."""
        rows, steps = previous_tokens.shape
        lengths = torch.full((rows,), steps, device=hidden.device)
        packing = pack(lengths, steps)
        heads, outputs, *_ = self._decode(previous_tokens, packing, encoding, hidden, responses)
        padded = unpack(torch.cat([heads, outputs], 1), packing, rows, steps)
        sizes = [self.interface.num_actions, 1, self.options.num_heads, outputs.shape[1]]
        logits, values, _, states = padded.split(sizes, -1)
        after = torch.cat([states[:, -1], hidden[:, outputs.shape[1] :]], 1)
        if self.num_kept and responses is not None:
            with torch.no_grad():
                remembered = after.detach().clone()
                for response in responses.unbind(1):
                    self._remember(remembered, response)
            after = torch.cat([states[:, -1], remembered[:, outputs.shape[1] :]], 1)
        return logits, values.squeeze(-1), after

    @torch.no_grad()
    def attention_weights(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> AttentionWeights:
        """Where the heads look at each step (see `AgentNetwork`)."""
        tokens, observed = self.shifted(actions, responses)
        encoding, hidden = self.read(context, stage)
        rows, steps = tokens.shape
        packing = pack(lengths, steps)
        heads, _, order, (weights,), answers = self._decode(
            tokens, packing, encoding, hidden, observed, rows_at_once=rows
        )
        gates = unpack(heads, packing, rows, steps)[..., self.interface.num_actions + 1 :]
        back = order.argsort()
        weights = weights.view(rows, -1, *gates.shape[2:], weights.shape[2])[back]
        happened = torch.arange(weights.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        weights = weights * happened[:, :, None, None]
        weights = functional.pad(weights, (0, 0, 0, 0, 0, steps - weights.shape[1]))
        read = encoding[0].shape[2]
        looked = functional.pad(weights[..., :read], (0, context.shape[1] - read))
        if answers is None:
            none = tokens.new_empty((rows, 0), dtype=torch.int64)
            return AttentionWeights(looked, weights[..., read:], gates, none, none, none)
        there = (answers.steps != _NO_TOKEN)[back]
        return AttentionWeights(
            looked,
            weights[..., read:],
            gates,
            torch.where(there, answers.steps[back] - 1, _NO_TOKEN),
            torch.where(there, answers.places[back], _NO_TOKEN),
            torch.where(there, answers.tokens[back], _NO_TOKEN),
        )

    # One step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step_table(self) -> StepTable:
        """The constants of `step` (see `AgentNetwork`)."""
        width = self.options.embedding_size
        answer_keys = cell_keys = token_values = cell_values = self.copied.new_empty(0, 0)
        if self.num_kept:
            token_keys, token_values = self.answer_tokens.split(_KEY_SIZE, 1)
            place_keys, place_values = self.answer_places.split(_KEY_SIZE, 1)
            answer_keys = torch.cat([token_keys, self.from_newest])
            cell_keys = (self.from_first.unsqueeze(1) + place_keys).flatten(0, 1)
            token_values = torch.cat([token_values, self.copied], 1)
            cell_values = place_values.repeat(self.num_kept, 1)
        state_weight, found_weight = self.read_out.weight.split(
            [width, self.read_out.in_features - width], 1
        )
        return StepTable(
            gru=gru_table(self._token_table(), self.decoder_gru),
            responses=self.response_input.step_table(),
            query_weight=self.query.weight.t() * _QUERY_SCALE,
            query_bias=self.query.bias * _QUERY_SCALE,
            answer_keys=answer_keys.t().contiguous(),
            cell_keys=cell_keys.t().contiguous(),
            token_values=token_values,
            cell_values=cell_values,
            state_weight=state_weight.t().contiguous(),
            found_weight=found_weight.t().contiguous(),
            read_out_bias=self.read_out.bias.clone(),
            head_weight=self.heads.weight.t().contiguous(),
            head_bias=self.heads.bias.clone(),
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
        """One step by table look-up (see `AgentNetwork`)."""
        width = self.options.embedding_size
        inputs = table.gru.inputs.index_select(0, previous_token)  # (B, 3D)
        if response is not None:
            self.response_input.add_to(inputs, table.responses, response)
        state = gru_step(table.gru, inputs, hidden[:, :width])
        hidden = torch.cat([state, hidden[:, width:]], 1)
        if self.num_kept and response is not None:
            self._remember(hidden, response)
        queries = torch.addmm(table.query_bias, state, table.query_weight)
        found = self._look_once(table, queries, previous_token, encoding, hidden)
        values, copies = found.split([_KEY_SIZE, self.interface.num_actions], -1)
        read = torch.addmm(table.read_out_bias, state, table.state_weight)
        read = tanh_(read.addmm_(values.flatten(1), table.found_weight))
        heads = _combine(torch.addmm(table.head_bias, read, table.head_weight), copies)
        actions = self.interface.num_actions
        return heads[:, :actions], heads[:, actions], hidden

    def _slots_in_use(self, hidden: Tensor) -> int:
        """Behind so many places for answers, none of the states (B, S) holds one."""
        if not self.num_kept or torch.compiler.is_exporting():  # a graph looks at all of them
            return self.num_kept
        return min(int(hidden[:, -1].max()), self.num_kept)

    def _look_once(
        self,
        table: StepTable,
        queries: Tensor,
        previous_token: Tensor,
        encoding: Encoding,
        hidden: Tensor,
    ) -> Tensor:
        """What the heads find at one step, (B, H, W + A): `_look` from tables of the tokens."""
        keys, values, before, hidden_scores = encoding
        rows, heads = queries.shape[0], self.options.num_heads
        queries = queries.view(rows, heads, _KEY_SIZE)
        previous = previous_token.long().unsqueeze(1)  # (B, 1)

        def prefer(scores: Tensor, follows: Tensor, strength: Tensor) -> None:
            scores.addcmul_(follows.to(scores.dtype).unsqueeze(1), strength.unsqueeze(1))

        scores = torch.baddbmm(hidden_scores, queries, keys)  # (B, H, L)
        prefer(scores, before == previous, self.follows_context)
        slots = self._slots_in_use(hidden)
        if not slots:
            return torch.bmm(short_softmax(scores), values)
        kept, length = self.num_kept, self.interface.response_length
        cells = slots * length  # M, of those that hold tokens in any row
        start = self.options.embedding_size
        tokens = hidden[:, start : start + cells].long()  # (B, M)
        flat = queries.view(-1, _KEY_SIZE)
        by_table = (flat @ table.answer_keys).view(rows, heads, -1)
        by_table[..., self.pad_token] = _UNSEEN  # so nothing is looked at where nothing is
        by_token, by_newest = by_table.split([len(table.token_values), kept], -1)
        answered = (flat @ table.cell_keys[:, :cells]).view(rows, heads, cells)
        index = tokens.unsqueeze(1).expand(-1, heads, -1)  # (B, H, M)
        answered += by_token.gather(2, index)
        newest = (hidden[:, -1:].long() - 1 - torch.arange(slots, device=hidden.device)) % kept
        newest = newest.repeat_interleave(length, 1).unsqueeze(1).expand(-1, heads, -1)
        answered += by_newest.gather(2, newest)
        follows = functional.pad(tokens[:, :-1] == previous, (1, 0))
        follows[:, ::length] = False  # no token stands before an answer's first place
        prefer(answered, follows, self.follows_answer)
        weights = short_softmax(torch.cat([scores, answered], -1))
        on_context, on_answers = weights.split([scores.shape[2], cells], -1)
        by_token = torch.zeros_like(by_token).scatter_add_(2, index, on_answers)
        found = torch.baddbmm(by_token @ table.token_values, on_context, values)  # (B, H, W + A)
        found[..., :_KEY_SIZE] += on_answers @ table.cell_values[:cells]
        return found


def _combine(heads: Tensor, copies: Tensor) -> Tensor:
    """Logits, values and gates (N, A + 1 + H) of N steps, from those without copies."""
    logits, value, gates = heads.split([copies.shape[2], 1, copies.shape[1]], 1)
    gates = functional.softplus(
        gates
    )  # never against a token, so a head always gains by finding it
    copied = (gates.unsqueeze(2) * copies).sum(1)  # (N, A)
    return torch.cat([logits + _COPY_SCALE * copied, value, gates], 1)


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * 0.5)
