"""A network as ONNX graphs: reading a problem, one decoding step, and a whole greedy episode.

The agent does not observe the machine, so an episode needs none: context and stage in, tokens out.

Shapes: B episodes, L the task's context length, T its most actions, A the actions that
there are, S the recurrent state.
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

from toolagent.models.base import AgentNetwork, InitialState
from toolagent.models.encoder_decoder import EncoderDecoderNetwork
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
    """Previous token (B,) int64, hidden state and encoding to logits, value and hidden state."""

    def __init__(self, network: AgentNetwork):
        super().__init__()
        self.network = network

    def forward(
        self, previous_token: Tensor, hidden: Tensor, encoding: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, A), (B,) and (B, S)."""
        table = self.network.step_table()
        return self.network.step(table, previous_token, encoding, hidden)


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
        return _encode(network, context)
    return network.begin(context, stage)


def _encode(network: EncoderDecoderNetwork, context: Tensor) -> InitialState:
    """The encoder over padded contexts; padding does not change a GRU's state."""
    first_place = torch.arange(context.shape[1], device=context.device) == 0
    shown = (context != network.pad_token) | first_place
    seen = context
    if network.alike is not None:
        first_alike, last_alike = network.alike
        same = (context >= first_alike) & (context <= last_alike)
        seen = torch.where(same, first_alike, context)

    def run(gru: nn.GRUCell, backwards: bool) -> tuple[Tensor, Tensor]:
        """The last state (B, D), and the states (B, L, D) behind each token."""
        inputs = functional.linear(network.context_embedding(seen), gru.weight_ih, gru.bias_ih)

        def read(hidden: Tensor, column: tuple[Tensor, Tensor]):
            gates, counts = column
            recurrent = functional.linear(hidden, gru.weight_hh, gru.bias_hh)
            reset_in, update_in, new_in = gates.chunk(3, 1)
            reset_by, update_by, new_by = recurrent.chunk(3, 1)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_by) * new_by)
            after = torch.lerp(new, hidden, torch.sigmoid(update_in + update_by))
            after = torch.where(counts.unsqueeze(1), after, hidden)
            return after, after.clone()

        start = inputs.new_zeros(1, gru.hidden_size).expand(context.shape[0], -1).clone()
        columns = (inputs.transpose(0, 1), shown.t())
        last, states = scan(read, start, columns, reverse=backwards)
        return last, states.transpose(0, 1)

    last, forward = run(network.forward_gru, False)
    first, backward = run(network.backward_gru, True)
    encoded = network.encoding(torch.cat([forward, backward], -1))  # (B, L, D)
    summary = torch.tanh(network.summary(torch.cat([last, first], 1)))
    actions = network.interface.num_actions
    named = functional.one_hot(context.clamp(max=actions - 1), actions)
    named = named.to(encoded.dtype) * (context < actions).unsqueeze(-1)
    coordinates, preference = network.attention.place_context(seen, shown)
    start = network.attention.start.expand(context.shape[0], -1)
    encoding = (torch.cat([encoded, named], -1), coordinates, preference)
    return InitialState(encoding, torch.cat([summary, start], 1))


def write_graphs(network: AgentNetwork, task: Task, folder: Path) -> None:
    """Writes the three graphs into a folder, each in one file with its weights.

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
    hidden, *encoding = Begin(network)(context, stage)
    parts = [f"encoding_{number}" for number in range(len(encoding))]
    token = torch.full_like(stage, network.start_token)
    problem, state = ["context", "stage"], ["hidden", *parts]
    tokens = ["tokens", "lengths"]
    _write(folder / BEGIN, Begin(network), (context, stage), problem, state)
    _write(
        folder / STEP,
        Step(network),
        (token, hidden, tuple(encoding)) if encoding else (token, hidden),
        ["previous_token", *state],
        ["logits", "value", "next_hidden"],
    )
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
