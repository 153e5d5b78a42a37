"""A network as ONNX graphs: reading a problem, one decoding step, and a whole greedy episode.

Where tools answer nothing, the agent does not observe the machine, and an episode needs none:
context and stage in, tokens out. Where they answer, the step has their answers as an input, and
there is no graph of an episode.

Shapes: B episodes, L the task's context length, T its most actions, A the actions that
there are, R the tokens of a response, S the recurrent state.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from toolagent.models.answer_attention import AnswerAttentionNetwork
from toolagent.models.base import AgentNetwork, InitialState
from toolagent.models.bidirectional_gru import ReadContexts
from toolagent.models.call_stack import CallStackNetwork
from toolagent.models.encoder_decoder import EncoderDecoderNetwork
from toolagent.models.packed_gru import gru_table
from toolagent.models.state_stack import stack_step
from toolagent.tasks import Task
from toolagent.vocabulary import Vocabulary

BEGIN, STEP, EPISODE = "begin.onnx", "step.onnx", "episode.onnx"
_EXAMPLES = 3  # rows to trace with: neither 0 nor 1, which would be taken for constants


class Begin(nn.Module):
    """Context (B, L) and stage (B,), int64, to the hidden state (B, S) and the encoding."""

    def __init__(self, network: AgentNetwork):
        super().__init__()
        self.network = network

    def forward(self, context: Tensor, stage: Tensor) -> tuple[Tensor, ...]:
        """Hidden state first, then the parts of the encoding."""
        encoding, hidden = begin(self.network, context, stage)
        return (hidden, *encoding)


class Step(nn.Module):
    """Previous token (B,) int64, hidden state and what else is read to logits, value and hidden
    state. Read are the encoding and, where tools answer, the response to the previous token, (B, R)
    int64.
    """

    def __init__(self, network: AgentNetwork):
        super().__init__()
        self.network = network

    def forward(
        self, previous_token: Tensor, hidden: Tensor, read: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, A), (B,) and (B, S)."""
        network, encoding, response = self.network, read, None
        if network.interface.response_length:
            *encoding, response = read
        table = network.step_table()
        return network.step(table, previous_token, tuple(encoding), hidden, response)


class Episode(nn.Module):
    """Context (B, L) and stage (B,), int64, to tokens (B, T) and lengths (B,), int64.

    A length counts the tokens up to the answer, or to the stage's limit; behind them the tokens are
    padding.
    """

    def __init__(self, network: AgentNetwork, task: Task):
        super().__init__()
        self.network, self.max_actions = network, task.max_actions
        self.vocabulary: Vocabulary = task.vocabulary
        limits = torch.zeros(task.stages.stop, dtype=torch.int64)
        stages = torch.arange(task.stages.start, task.stages.stop)
        limits[stages] = torch.as_tensor(task.action_limit(stages.numpy()), dtype=torch.int64)
        self.register_buffer("limits", limits)

    limits: Tensor  # (stages,)

    def forward(self, context: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
        """Plays the most probable token at each step."""
        encoding, hidden = begin(self.network, context, stage)
        table = self.network.step_table()

        def write(carry: tuple[Tensor, Tensor], _: Tensor):
            token, hidden = carry
            logits, _, hidden = self.network.step(table, token, encoding, hidden)
            token = logits.argmax(1)
            return (token, hidden), token.clone()  # a carry and an output may not be one tensor

        start = (torch.full_like(stage, self.vocabulary.start_token), hidden)
        _, tokens = scan(write, start, context.new_zeros(self.max_actions))
        tokens = tokens.t()  # (B, T)
        place = torch.arange(self.max_actions, device=tokens.device)
        answered = torch.where(
            tokens == self.vocabulary.answer_token, place + 1, self.max_actions
        ).amin(1)
        lengths = torch.minimum(answered, self.limits[stage])
        pad = self.vocabulary.pad_token
        return torch.where(place < lengths.unsqueeze(1), tokens, pad), lengths


def begin(network: AgentNetwork, context: Tensor, stage: Tensor) -> InitialState:
    """`network.begin` in operations that ONNX can express with fixed shapes."""
    if isinstance(network, EncoderDecoderNetwork):
        return _begin_encoder_decoder(network, context)
    if isinstance(network, AnswerAttentionNetwork):
        return _begin_answer_attention(network, context)
    if isinstance(network, CallStackNetwork):
        return _begin_call_stack(network, context)
    return network.begin(context, stage)


def _begin_encoder_decoder(network: EncoderDecoderNetwork, context: Tensor) -> InitialState:
    seen, shown = context, _shown(network, context)
    if network.alike is not None:
        first_alike, last_alike = network.alike
        same = (context >= first_alike) & (context <= last_alike)
        seen = torch.where(same, first_alike, context)
    embedded = network.context_embedding(seen)
    read = _read_both_ways(embedded, shown, network.forward_gru, network.backward_gru)
    encoded = network.encoding(read.states)  # (B, L, D)
    summary = torch.tanh(network.summary(read.ends))
    actions = network.interface.num_actions
    named = functional.one_hot(context.clamp(max=actions - 1), actions)
    named = named.to(encoded.dtype) * (context < actions).unsqueeze(-1)
    coordinates, preference = network.attention.place_context(seen, shown)
    start = network.attention.start.expand(context.shape[0], -1)
    encoding = (torch.cat([encoded, named], -1), coordinates, preference)
    return InitialState(encoding, torch.cat([summary, start], 1))


def _begin_answer_attention(network: AnswerAttentionNetwork, context: Tensor) -> InitialState:
    shown = _shown(network, context)
    embedding, _ = network.context_tables()
    embedded = functional.embedding(context, embedding)
    read = _read_both_ways(embedded, shown, network.forward_gru, network.backward_gru)
    return network.initial_state(context, shown, read)


def _begin_call_stack(network: CallStackNetwork, context: Tensor) -> InitialState:
    shown = _shown(network, context)
    inputs, gate_logits = network.token_inputs(context)
    gates = torch.softmax(gate_logits, -1)
    table = gru_table(network.context_embedding.weight, network.reader)
    rows, most = context.shape[0], network.options.stack_size

    def read(carry: tuple[Tensor, Tensor], column: tuple[Tensor, Tensor]):
        return stack_step(table, network.call_state, *column, *carry, most), carry[0].clone()

    hidden = network.call_state.unsqueeze(0).expand(rows, -1).clone()
    stack = hidden.unsqueeze(1).expand(-1, most, -1) * 0.0
    _, states = scan(read, (hidden, stack), (inputs.transpose(0, 1), gates.transpose(0, 1)))
    opened, contents = network.slots_of(states.transpose(0, 1), context, shown)

    def count(so_far: Tensor, opened_i: Tensor):
        """How much t slots are open behind a slot, and its weights (`SlotWeights`)."""
        weights = so_far * opened_i.unsqueeze(1)
        moved = functional.pad(weights[:, :-1], (1, 0))
        return so_far - weights + moved, weights

    steps = network.interface.max_actions + 1
    first = (torch.arange(steps, device=context.device) == 0).to(opened.dtype)
    first = first.unsqueeze(0).expand(rows, -1).clone()
    _, weights = scan(count, first, opened.flatten(1).t())  # (I, B, T)
    written = network.mixed(weights.transpose(0, 1), contents)
    return InitialState((written,), written[:, 0, :1] * 0.0)


def _shown(network: AgentNetwork, context: Tensor) -> Tensor:
    """(B, L) bool: the tokens that count; of a context without any, the first."""
    first_place = torch.arange(context.shape[1], device=context.device) == 0
    return (context != network.pad_token) | first_place


def _read_both_ways(
    embedded: Tensor, shown: Tensor, forward_gru: nn.GRUCell, backward_gru: nn.GRUCell
) -> ReadContexts:
    """`read_both_ways` over all of padded contexts (B, L, W); padding does not change a state."""

    def run(gru: nn.GRUCell, backwards: bool) -> tuple[Tensor, Tensor]:
        """The last state (B, D), and the states (B, L, D) behind each token."""
        inputs = functional.linear(embedded, gru.weight_ih, gru.bias_ih)

        def read(hidden: Tensor, column: tuple[Tensor, Tensor]):
            gates, counts = column
            recurrent = functional.linear(hidden, gru.weight_hh, gru.bias_hh)
            reset_in, update_in, new_in = gates.chunk(3, 1)
            reset_by, update_by, new_by = recurrent.chunk(3, 1)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_by) * new_by)
            after = torch.lerp(new, hidden, torch.sigmoid(update_in + update_by))
            after = torch.where(counts.unsqueeze(1), after, hidden)
            return after, after.clone()

        start = inputs.new_zeros(1, gru.hidden_size).expand(embedded.shape[0], -1).clone()
        columns = (inputs.transpose(0, 1), shown.t())
        last, states = scan(read, start, columns, reverse=backwards)
        return last, states.transpose(0, 1)

    last, forward = run(forward_gru, False)
    first, backward = run(backward_gru, True)
    return ReadContexts(torch.cat([forward, backward], -1), torch.cat([last, first], 1))


def write_graphs(network: AgentNetwork, task: Task, folder: Path) -> None:
    """Writes the graphs into a folder, each in one file with its weights.

    There is one of a whole episode only where tools answer nothing.

    Args:
        network: on the CPU.
        task: the task that it plays.
        folder: exists.
    """
    # Without gradients: `scan` would trace a backward pass otherwise.
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        with _quiet():
            _write_graphs(network, task, folder)
    finally:
        for parameter, required in wanted:
            parameter.requires_grad_(required)


def _write_graphs(network: AgentNetwork, task: Task, folder: Path) -> None:
    stage = torch.full((_EXAMPLES,), task.stages[-1])
    context = torch.full((_EXAMPLES, task.context_length), network.start_token)
    hidden, *read = Begin(network)(context, stage)
    parts = [f"encoding_{number}" for number in range(len(read))]
    token = torch.full_like(stage, network.start_token)
    problem, state = ["context", "stage"], ["hidden", *parts]
    _write(folder / BEGIN, Begin(network), (context, stage), problem, state)
    observed = ["previous_token", *state]
    if task.response_length:
        observed.append("response")
        read.append(torch.full((_EXAMPLES, task.response_length), network.pad_token))
    _write(
        folder / STEP,
        Step(network),
        (token, hidden, tuple(read)) if read else (token, hidden),
        observed,
        ["logits", "value", "next_hidden"],
    )
    if not task.response_length:
        tokens = ["tokens", "lengths"]
        _write(folder / EPISODE, Episode(network, task), (context, stage), problem, tokens)


def _write(
    file: Path, graph: nn.Module, inputs: tuple, input_names: list[str], output_names: list[str]
) -> None:
    """One graph with any number of rows."""
    rows = torch.export.Dim("batch")

    def dynamic(value):
        return tuple(map(dynamic, value)) if isinstance(value, tuple) else {0: rows}

    program = torch.onnx.export(
        graph.eval(),
        inputs,
        input_names=input_names,
        output_names=output_names,
        dynamic_shapes=tuple(map(dynamic, inputs)),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporter's remarks on packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
