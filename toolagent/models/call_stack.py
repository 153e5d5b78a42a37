"""A network with a stack of its own states: for problems that are nested as deep as one likes.

Shapes: B episodes (P different contexts), L context tokens, T steps, N steps that count, E the
width of a token's embedding, D of a state, C of a slot's content, K slots a token, I = L K, M
entries of the stack, A actions, V tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from toolagent.models.base import (
    AgentNetwork,
    Encoding,
    InitialState,
    ResponseInput,
)
from toolagent.models.bidirectional_gru import shown_tokens
from toolagent.models.packed_gru import gru_table
from toolagent.models.packing import one_of_each_run, pack, unpack_heads
from toolagent.models.state_stack import KEEP, SlotWeights, StackedGRU
from toolagent.vocabulary import Interface

# How far a slot is open is drawn back from beyond this, with this strength, while there is noise: a
# slot that is closed everywhere by more than the noise would never learn to be open.
_FREE_RANGE = 1.2
_RESTRAINT = 1.0
_COPY_SCALE = 2.0  # copying has to be found first, so its gate moves faster than other weights


class CallStackOptions(NamedTuple):
    """E, D, the width of the hidden layer that writes slots, C, K, M, and how it is trained.

    `keep_bias` is what the gate that keeps is ahead of the others at first. The noise, standard
    deviations, is there only while a network imitates (`AgentNetwork.noisy`): on states, on whether
    slots are open, and on the gates of the stack.

    Without `sees_digits` all digits look the same, read or written: what is written follows from
    the structure of the context alone, and which digit it is matters only where it is copied.
    """

    embedding_size: int = 16
    state_size: int = 24
    writer_size: int = 64
    slot_size: int = 48
    slots_per_token: int = 2
    stack_size: int = 16
    keep_bias: float = 1.0
    state_noise: float = 0.4
    slot_noise: float = 0.3
    gate_noise: float = 1.0
    sees_digits: bool = False


class StepTable(NamedTuple):
    """The constants of a step."""

    tokens: Tensor  # (previous tokens, C)
    responses: Tensor | None  # of `ResponseInput.table`, where tools answer
    hidden_weight: Tensor  # (C, C)
    hidden_bias: Tensor  # (C,)
    head_weight: Tensor  # (C, A + 2)
    head_bias: Tensor  # (A + 2,)


class StackTrace(NamedTuple):
    """What a network did with its stack while it read P contexts; beyond an end, nothing meant."""

    gates: Tensor  # (P, L, 3): how much it pushed, popped and kept at each token
    opened: Tensor  # (P, L, K): how far each slot is open, so whether its content is written
    weights: Tensor  # (P, I, T): how much each slot is what is written at each step


class CallStackNetwork(AgentNetwork):
    """Reads once, with a stack of states; what it will write then stands in slots, in order.

        a_j = softmax(W_a x_j + b_a)                         push, pop or keep, by the token x_j
        h_j = GRU(x_j, push h_init + pop top(S_(j-1)) + keep h_(j-1))
        S_j = push [h_(j-1); S_(j-1)] + pop shift_up(S_(j-1)) + keep S_(j-1)
        [g_jk; c_jk] = W_2 relu(W_1 [h_(j-1); x_j] + b_1) + b_2      K slots of each token
        m_jk = clamp(1/2 + g_jk / 2, 0, 1)                   whether a slot is open
        w_ti = alpha_i(t) m_i                                slot i is the t-th open one, t = 0, ...
        alpha_(i+1)(t) = alpha_i(t) (1 - m_i) + alpha_i(t-1) m_i,     alpha_1(0) = 1
        r_t = sum_i w_ti c_i + (1 - sum_i w_ti) c_end
        y_t = tanh(W_y relu(r_t + p[previous token] [+ response]) + b_y)
        logits_t = W_pi y_t + b_pi + 2 (w_g . y_t + b_g) copy_t,     value_t = w_v . y_t + b_v

    copy_t = sum_i w_ti one_hot(x_i) is what the slots' own tokens are, as far as they are actions.
    A push is a call: it puts the state away and starts from h_init; a pop is its return: it goes on
    from the state that was put away. So a state never sees how deep it is, and what was learned of
    shallow problems holds for deep ones. Slots that are open are written one after the other, then
    c_end. The gates follow from the token alone.

    The state is the number of the step: all else is known when the context is read. A stack entry
    that finds no room falls off the bottom; a pop from an empty stack finds zeros.

    Neighbours in the batch and padding behind the context can't change what is computed. The stage
    is not looked at.

    While there is noise, the loss has one more term, that draws g back to where the noise can still
    open a closed slot: mean(max(|g| - 1.2, 0)^2) / 2 over all slots.

    Sources: Joulin and Mikolov 2015, "Inferring algorithmic patterns with stack-augmented recurrent
    nets" (the stack, a mixture of what its actions would make of it); Das et al. 1992; Gu et al.
    2016 (copying). Noise against solutions that are no rule: Graves 2011, "Practical variational
    inference for neural networks".
    """

    Options = CallStackOptions

    def __init__(self, interface: Interface, options: CallStackOptions | None = None):
        super().__init__(interface, options)
        given = self.options
        for name in CallStackOptions._fields[:6]:
            if getattr(given, name) < 1:
                raise ValueError(f"{name} is {getattr(given, name)}; it must be at least 1")
        for name in CallStackOptions._fields[7:10]:
            if getattr(given, name) < 0:
                raise ValueError(f"{name} is {getattr(given, name)}; it must be at least 0")
        vocabulary, tokens = interface.vocabulary, interface.context_vocabulary
        width, states, slot = given.embedding_size, given.state_size, given.slot_size
        self.context_embedding = nn.Embedding(tokens, width)
        self.gates = nn.Linear(width, 3)
        self.reader = nn.GRUCell(width, states)
        self.call_state = nn.Parameter(torch.zeros(states))  # h_init; h_0 too
        self.writer_state = nn.Linear(states, given.writer_size)
        self.writer_token = nn.Linear(width, given.writer_size, bias=False)
        self.slots = nn.Linear(given.writer_size, given.slots_per_token * (1 + slot))
        self.end_content = nn.Parameter(torch.zeros(slot))  # c_end
        self.token_embedding = nn.Embedding(vocabulary.num_previous_tokens, slot)
        self.response_input = ResponseInput(interface, slot)
        self.hidden_layer = nn.Linear(slot, slot)
        self.heads = nn.Linear(slot, interface.num_actions + 2)  # logits, value, copy gate
        with torch.no_grad():
            self.gates.bias[KEEP] += given.keep_bias
        digits = [token for token, name in enumerate(vocabulary.names) if name.isdigit()]
        looks_like = torch.arange(tokens)
        if digits and not given.sees_digits:
            looks_like[digits] = digits[0]
        self.register_buffer("looks_like", looks_like, persistent=False)
        # Row v: which action token v is; of one that can't be written, none.
        copied = torch.eye(tokens, interface.num_actions)
        self.register_buffer("copied", copied, persistent=False)
        self.register_buffer("one_hot", torch.eye(tokens)[looks_like], persistent=False)

    looks_like: Tensor  # (V,) int64: which token each looks like
    copied: Tensor  # (V, A)
    one_hot: Tensor  # (V, V): the same as rows of zeros and a one

    def _one_hot(self, tokens: Tensor) -> Tensor:
        """(..., V): the gradient of a product with them is fast, that of a look-up is not."""
        return self.one_hot[tokens]

    @property
    def state_parts(self) -> dict[str, slice]:
        """(see `AgentNetwork`)"""
        return {"step": slice(0, 1)}

    # Reading ----------------------------------------------------------------------------------

    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """Reads B problems; equal ones that stand side by side only once (see `AgentNetwork`).

        Returns:
            The encoding, of one part: (B, T + 1, C + A), contents and copies that each step is
            written from; a step behind the last is like it.
        """
        context, repeat = one_of_each_run(context)
        tokens, shown = shown_tokens(context, self.pad_token)
        written = self.written(tokens, shown, self.interface.max_actions + 1)
        if repeat is not None:
            written = written.index_select(0, repeat)
        return InitialState((written,), written.new_zeros(len(written), 1))

    def written(self, tokens: Tensor, shown: Tensor, steps: int) -> Tensor:
        """(P, `steps`, C + A): r_t and copy_t of each step, of (P, L) contexts."""
        states, _ = self.read_states(tokens, shown)
        opened, contents = self.slots_of(states, tokens, shown)
        weights = SlotWeights.apply(opened.flatten(1), steps)  # (P, I, `steps`)
        return self.mixed(weights, contents)

    def token_inputs(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the reader takes in at (P, L) tokens, (P, L, 3D), and the logits of the gates,
        (P, L, 3)."""
        embedded = self.context_embedding.weight
        inputs = gru_table(embedded, self.reader).inputs
        seen = self._one_hot(tokens)
        return seen @ inputs, seen @ self.gates(embedded)

    def read_states(self, tokens: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """The states (P, L, D) before each token, and the gates (P, L, 3)."""
        inputs, gate_logits = self.token_inputs(tokens)
        if self.noisy:
            gate_logits = _noised(gate_logits, self.options.gate_noise)
        gates = torch.softmax(gate_logits, -1)
        noise = None
        if self.noisy:
            shape = (tokens.shape[1], len(tokens), self.options.state_size)
            noise = self.options.state_noise * torch.randn(shape, device=tokens.device)
        table = gru_table(self.context_embedding.weight, self.reader)
        size = self.options.state_size
        states = StackedGRU.apply(
            inputs.transpose(0, 1),
            gates.transpose(0, 1),
            *table.recurrent_weight.split([2 * size, size], 1),
            table.candidate_bias,
            self.call_state,
            noise,
            self.options.stack_size,
        )
        return states.transpose(0, 1), gates

    def slots_of(self, states: Tensor, tokens: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """How far the slots are open (P, L, K), and their contents with copies (P, I, C + A)."""
        by_token = self.writer_token(self.context_embedding.weight)  # (V, writer_size)
        read = self.writer_state(states) + self._one_hot(tokens) @ by_token
        slots = self.slots(torch.relu(read))
        slots = slots.unflatten(2, (self.options.slots_per_token, -1))  # (P, L, K, 1 + C)
        openness, contents = slots[..., 0], slots[..., 1:]
        if self.noisy:
            openness = Restrained.apply(openness, _FREE_RANGE, _RESTRAINT)
            openness = _noised(openness, self.options.slot_noise)
        opened = torch.clamp(0.5 + 0.5 * openness, 0.0, 1.0) * shown.unsqueeze(2)
        copies = self.copied[tokens].unsqueeze(2).expand(-1, -1, opened.shape[2], -1)
        return opened, torch.cat([contents, copies], -1).flatten(1, 2)

    def mixed(self, weights: Tensor, contents: Tensor) -> Tensor:
        """(P, T, C + A) of weights (P, I, T) and contents with copies (P, I, C + A)."""
        end = functional.pad(self.end_content, (0, self.interface.num_actions))
        left = 1.0 - weights.sum(1)  # (P, T)
        return torch.baddbmm(left.unsqueeze(2) * end, weights.transpose(1, 2), contents)

    @torch.no_grad()
    def stack_trace(self, context: Tensor) -> StackTrace:
        """What it does with its stack while it reads (P, L) contexts."""
        tokens, shown = shown_tokens(context, self.pad_token)
        states, gates = self.read_states(tokens, shown)
        opened, _ = self.slots_of(states, tokens, shown)
        weights = SlotWeights.apply(opened.flatten(1), self.interface.max_actions)
        return StackTrace(gates, opened, weights)

    # Writing ----------------------------------------------------------------------------------

    def _write(
        self, written: Tensor, tokens: Tensor, responses: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, A) and values (N,) of N steps: (N, C + A), the tokens before them (N,), and
        what those were answered with, (N, R)."""
        contents, copies = written.split([self.options.slot_size, self.interface.num_actions], -1)
        embedding = self.token_embedding.weight
        inputs = contents + self._one_hot(tokens.long())[:, : len(embedding)] @ embedding
        if responses is not None:
            inputs = inputs + self.response_input(responses)
        outputs = torch.tanh(self.hidden_layer(torch.relu(inputs)))
        return _combine(self.heads(outputs), copies)

    def unroll_episodes(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Reads, then writes all steps (see `AgentNetwork`)."""
        previous, observed = self.shifted(actions, responses)
        context, repeat = one_of_each_run(context)
        tokens, shown = shown_tokens(context, self.pad_token)
        packing = pack(lengths, actions.shape[1])
        steps = len(packing.sizes)
        written = self.written(tokens, shown, steps)  # (P, `steps`, C + A)
        episode, step = packing.place // actions.shape[1], packing.place % actions.shape[1]
        row = episode if repeat is None else repeat[episode]
        logits, values = self._write(
            written.flatten(0, 1).index_select(0, row * steps + step),
            previous.reshape(-1)[packing.place],
            None if observed is None else observed.flatten(0, 1)[packing.place],
        )
        heads = torch.cat([logits, values.unsqueeze(1)], 1)
        return unpack_heads(heads, packing, self.interface.num_actions, *actions.shape)

    def unroll(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Writes some steps (see `AgentNetwork`)."""
        rows, steps = previous_tokens.shape
        number = hidden + torch.arange(steps, device=hidden.device)  # (B, T)
        logits, values = self._write(
            _at(encoding[0], number).flatten(0, 1),
            previous_tokens.flatten(),
            None if responses is None else responses.flatten(0, 1),
        )
        return logits.view(rows, steps, -1), values.view(rows, steps), hidden + steps

    @torch.no_grad()
    def step_table(self) -> StepTable:
        """The constants of `step` (see `AgentNetwork`)."""
        embedding = self.token_embedding.weight
        return StepTable(
            tokens=embedding[self.looks_like[: len(embedding)]],
            responses=self.response_input.step_table(),
            hidden_weight=self.hidden_layer.weight.t().contiguous(),
            hidden_bias=self.hidden_layer.bias.clone(),
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
        contents, copies = _at(encoding[0], hidden)[:, 0].split(
            [self.options.slot_size, self.interface.num_actions], 1
        )
        inputs = contents + table.tokens.index_select(0, previous_token)
        if response is not None:
            self.response_input.add_to(inputs, table.responses, response)
        outputs = torch.addmm(table.hidden_bias, torch.relu(inputs), table.hidden_weight).tanh()
        heads = torch.addmm(table.head_bias, outputs, table.head_weight)
        return *_combine(heads, copies), hidden + 1


class Restrained(torch.autograd.Function):
    """Values as they are; the loss that they lead to gets strength / 2 * mean(excess^2) on top,
    where a value's excess is how far it is beyond -limit or limit."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, limit: float, strength: float) -> Tensor:
        """Of any shape."""
        ctx.save_for_backward(values)
        ctx.limit, ctx.strength = limit, strength
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `values`."""
        (values,) = ctx.saved_tensors
        excess = values - values.clamp(-ctx.limit, ctx.limit)
        return gradients[0] + ctx.strength / values.numel() * excess, None, None


def _noised(values: Tensor, deviation: float) -> Tensor:
    return values + deviation * torch.randn_like(values)


def _at(written: Tensor, number: Tensor) -> Tensor:
    """(B, T, C + A): what is written from (B, T', C + A) at steps of those numbers, (B, T)."""
    number = number.long().clamp(max=written.shape[1] - 1)
    return written.gather(1, number.unsqueeze(2).expand(-1, -1, written.shape[2]))


def _combine(heads: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, A) and values (N,) of (N, A + 2) heads."""
    logits, values, gate = heads.split([copies.shape[1], 1, 1], 1)
    return torch.addcmul(logits, gate, copies, value=_COPY_SCALE), values.squeeze(1)
