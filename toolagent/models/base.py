"""The interface of networks to rollouts, learner and checkpoints.

Shapes: B episodes, T steps, L context tokens, A actions, R tokens of a response, S the width of
the recurrent state.
"""

from __future__ import annotations

import abc
import functools
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from toolagent.vocabulary import Interface

Encoding = tuple[Tensor, ...]  # each (B, ...): what a network keeps of the context it has read


class InitialState(NamedTuple):
    """A network that has read its problems and not acted yet."""

    encoding: Encoding
    hidden: Tensor  # (B, S)


class AttentionWeights(NamedTuple):
    """Where H heads look at each of T steps of B episodes, and what of it they copy.

    The weights of a step and head sum to 1 over context places and answer tokens together; they
    are 0 behind an episode's end and on what is not seen yet.
    """

    context: Tensor  # (B, T, H, L) weights on the context's tokens
    answers: Tensor  # (B, T, H, M) weights on the tokens of the answers seen so far
    gates: Tensor  # (B, T, H) how much what a head finds adds to the logits of those tokens
    answer_steps: Tensor  # (B, M) int64: the step whose action got that answer, -1: no token
    answer_places: Tensor  # (B, M) int64: the token's place in the answer, -1: no token
    answer_tokens: Tensor  # (B, M) int64: the token, -1: none


class NoOptions(NamedTuple):
    """The options of a network that has none."""


class AgentNetwork(nn.Module, abc.ABC):
    """Reads a context once, then maps its own last token and its hidden state to the next token.

    A subclass needs `begin` and `unroll`; what else rollouts and learner call has defaults that
    are made of these, right and slower. All that is remembered between two steps is in `hidden`:
    learning, playing and stock RLlib cut an episode in different pieces, which must give the same
    (so there is no dropout, and no normalization over the batch). `check.check_network` tries it.
    Several threads may play with one network at once, as certification does.

    `Options` is a NamedTuple of plain values with defaults: the options of the model config. They
    and the task's `Interface` determine every weight's shape, and a checkpoint carries them.

    Args:
        interface: tokens, stages and lengths of the task.
        options: of the network; its defaults if there are none.

    Raises:
        ValueError: an option that can't be; the message begins with its name.
    """

    Options: ClassVar[Any] = NoOptions
    # Set while a network imitates: `unroll_episodes` then computes with the noise that it is
    # trained with. A network that has none stays as it is.
    noisy: bool = False

    def __init__(self, interface: Interface, options: Any = None):
        super().__init__()
        self.interface = interface
        self.options: Any = self.Options() if options is None else self.Options(*options)

    @functools.cached_property
    def hidden_size(self) -> int:
        """S: how wide the state is that `begin` returns."""
        device = next(self.parameters()).device
        context = torch.full(
            (1, self.interface.context_length), self.start_token, dtype=torch.int64, device=device
        )
        with torch.no_grad():
            _, hidden = self.begin(context, torch.zeros(1, dtype=torch.int64, device=device))
        return hidden.shape[1]

    @property
    def state_parts(self) -> dict[str, slice]:
        """The parts of the state (B, S) by name: all of it, none of it twice.

        Two episodes' parts can be exchanged one by one, to see which of them holds what.
        """
        return {"hidden": slice(0, self.hidden_size)}

    @property
    def start_token(self) -> int:
        """The previous token of an episode's first step."""
        return self.interface.vocabulary.start_token

    @property
    def pad_token(self) -> int:
        """What fills contexts and responses."""
        return self.interface.vocabulary.pad_token

    @abc.abstractmethod
    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """Reads B problems.

        Args:
            context: (B, L) int64 tokens, `pad_token` from the end of the context on.
            stage: (B,) int64.

        Returns:
            The encoding, a tuple of tensors (B, ...) that may be empty, and (B, S) float32, the
            state before the first step.
        """

    @abc.abstractmethod
    def unroll(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whole sequences without an end: what stock RLlib runs.

        Args:
            previous_tokens: (B, T) int64.
            encoding: of `begin`.
            hidden: (B, S), before the first of them.
            responses: (B, T, R) int64: what each previous token was answered with; not given
                where tools answer nothing.

        Returns:
            logits (B, T, A), values (B, T), hidden (B, S) after the last of them.
        """

    def read(self, context: Tensor, stage: Tensor) -> InitialState:
        """`begin` for tokens of any integer type."""
        return self.begin(context.long(), stage.long())

    def unroll_observed(
        self,
        previous_tokens: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        responses: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`unroll` for tokens of any integer type; it is not told of responses that are None."""
        given = () if responses is None else (responses.long(),)
        return self.unroll(previous_tokens.long(), encoding, hidden, *given)

    def unroll_episodes(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of every step of whole episodes: what the batched learner runs.

        Args:
            context: (B, L) integers.
            stage: (B,) integers.
            actions: (B, T) integers; step t reads action t-1, the first step `start_token`.
            lengths: (B,) integers >= 1: the steps that count.
            responses: (B, T, R) integers: what each action was answered with; None: nothing.

        Returns:
            (B, T, A) logits and (B, T) values, 0 at and after an episode's end.
        """
        encoding, hidden = self.read(context, stage)
        previous_tokens, observed = self.shifted(actions, responses)
        logits, values, _ = self.unroll_observed(previous_tokens, encoding, hidden, observed)
        mask = torch.arange(actions.shape[1], device=actions.device) < lengths.unsqueeze(1)
        return logits.masked_fill(~mask.unsqueeze(-1), 0.0), values.masked_fill(~mask, 0.0)

    def attention_weights(
        self,
        context: Tensor,
        stage: Tensor,
        actions: Tensor,
        lengths: Tensor,
        responses: Tensor | None = None,
    ) -> AttentionWeights | None:
        """Where the network looks at each step of whole episodes (arguments of `unroll_episodes`).

        Returns:
            None: it does not look at single tokens, or does not show it.
        """
        return None

    def shifted(
        self, actions: Tensor, responses: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What is observed at each step: (B, T) the actions and (B, T, R) the responses before."""
        start = torch.full_like(actions[:, :1], self.start_token)
        previous_tokens = torch.cat([start, actions[:, :-1]], 1)
        if responses is None:
            return previous_tokens, None
        none = torch.full_like(responses[:, :1], self.pad_token)
        return previous_tokens, torch.cat([none, responses[:, :-1]], 1)

    def step_table(self) -> Any:
        """The constants of `step` for the current weights; make a new one when they change."""
        return None

    @torch.no_grad()
    def step(
        self,
        table: Any,
        previous_token: Tensor,
        encoding: Encoding,
        hidden: Tensor,
        response: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the same network: what rollouts run, without gradients.

        Args:
            table: of the current weights.
            previous_token: (B,) int32 or int64.
            encoding: of `begin`.
            hidden: (B, S).
            response: (B, R) integers: what the previous token was answered with; None: nothing.

        Returns:
            logits (B, A), values (B,), hidden (B, S).
        """
        observed = None if response is None else response.unsqueeze(1)
        logits, values, hidden = self.unroll_observed(
            previous_token.unsqueeze(1), encoding, hidden, observed
        )
        return logits[:, 0], values[:, 0], hidden

    @torch.no_grad()
    def hidden_states(
        self,
        context: np.ndarray,
        stage: np.ndarray,
        actions: np.ndarray,
        responses: np.ndarray | None = None,
    ) -> np.ndarray:
        """(B, T, S) float32: the states that the actions (B, T) were chosen from."""
        encoding, hidden = self.read(torch.from_numpy(context), torch.from_numpy(stage))
        previous_tokens, observed = self.shifted(
            torch.from_numpy(actions.astype(np.int64)), as_responses(responses)
        )
        table, states = self.step_table(), []
        for step in range(actions.shape[1]):
            response = None if observed is None else observed[:, step]
            _, _, hidden = self.step(table, previous_tokens[:, step], encoding, hidden, response)
            states.append(hidden.numpy())
        return np.stack(states, 1)


def as_responses(column: np.ndarray | Tensor | None) -> Tensor | None:
    """A batch's column (..., R) as networks take it: None where R is 0."""
    if column is None or not column.shape[-1]:
        return None
    return column if isinstance(column, Tensor) else torch.from_numpy(column)


class ResponseInput(nn.Module):
    """What the tokens of a response add to a layer's input: a vector for each token and place.

        x = sum over r of V[r, response_r],  0 for a token that is `pad`

    Args:
        interface: of the task; without a response there are no weights.
        width: W, of the input.
    """

    def __init__(self, interface: Interface, width: int):
        super().__init__()
        self.pad_token = interface.vocabulary.pad_token
        shape = (interface.response_length, interface.context_vocabulary, width)
        self.vectors = nn.Parameter(torch.randn(shape) * 0.1) if shape[0] else None

    def table(self) -> Tensor:
        """(R V, W): the vectors of all places and tokens, 0 for `pad`."""
        assert self.vectors is not None, "a task without responses"
        places, tokens, width = self.vectors.shape
        counts = torch.arange(tokens, device=self.vectors.device) != self.pad_token
        return (self.vectors * counts.unsqueeze(1)).view(places * tokens, width)

    def of_answered(self, table: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
        """What responses add where there are any: most steps have none.

        Args:
            table: of `table`.
            responses: (N, R) integers.

        Returns:
            (K,) int64, the rows that are not all `pad`, and (K, W). In a graph that is exported
            all rows: no shape in it can depend on values.
        """
        places = responses.shape[1]
        if torch.compiler.is_exporting():
            rows = torch.arange(responses.shape[0], device=responses.device)
        else:
            rows = (responses != self.pad_token).any(1).nonzero().squeeze(1)
        first = torch.arange(0, len(table), len(table) // places, device=responses.device)
        # In one pass: the vectors of all places, (K, R, W), are never written down.
        indices = responses.index_select(0, rows).long() + first
        return rows, functional.embedding_bag(indices, table, mode="sum")

    def forward(self, responses: Tensor) -> Tensor:
        """(..., R) integers to (..., W)."""
        table = self.table()
        rows, vectors = self.of_answered(table, responses.flatten(0, -2))
        added = table.new_zeros(responses[..., 0].numel(), table.shape[1])
        return added.index_copy(0, rows, vectors).view(*responses.shape[:-1], -1)

    def packed(
        self, responses: Tensor | None, place: Tensor
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """What `PackedGRU` takes of (B, T, R) responses: vectors, and the steps that have one.

        Args:
            responses: None: nothing.
            place: of `Packing`.
        """
        if responses is None:
            return None, None
        observed = responses.flatten(0, 1).index_select(0, place)  # (N, R)
        steps, vectors = self.of_answered(self.table(), observed)
        return vectors, steps

    @torch.no_grad()
    def step_table(self) -> Tensor | None:
        """`table` for `add_to`; None where tools answer nothing."""
        return None if self.vectors is None else self.table()

    @torch.no_grad()
    def add_to(self, inputs: Tensor, table: Tensor | None, response: Tensor) -> None:
        """Adds to (B, W) inputs, in place, what (B, R) responses add."""
        assert table is not None, "a task without responses"
        rows, vectors = self.of_answered(table, response)
        inputs.index_add_(0, rows, vectors)
