"""The interface of networks to rollouts, learner and checkpoints.

Shapes: B episodes, T steps, L context tokens, S the width of the recurrent state.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from toolagent.vocabulary import CTX

Encoding = tuple[Tensor, ...]  # each (B, ...): what a network keeps of the context it has read


class InitialState(NamedTuple):
    """A network that has read its problems and not acted yet."""

    encoding: Encoding
    hidden: Tensor  # (B, S)


class AgentNetwork(nn.Module, abc.ABC):
    """Reads a context once, then maps its own last token and its hidden state to the next token.

    `Sizes` is a NamedTuple of plain values that determine every weight's shape. Its first two are
    the task's, `context_vocabulary` and `num_stages`; the others are options of the model config,
    with defaults. A checkpoint carries it.
    """

    Sizes: ClassVar[Any]
    sizes: Any

    @property
    @abc.abstractmethod
    def hidden_size(self) -> int:
        """S."""

    @abc.abstractmethod
    def begin(self, context: Tensor, stage: Tensor) -> InitialState:
        """Reads B problems.

        Args:
            context: (B, L) integer tokens, `EOS` from the end of the context on.
            stage: (B,) integers.
        """

    @abc.abstractmethod
    def unroll(
        self, previous_tokens: Tensor, encoding: Encoding, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whole sequences without an end: what stock RLlib runs.

        Args:
            previous_tokens: (B, T) integers.
            encoding: of `begin`.
            hidden: (B, S), before the first of them.

        Returns:
            logits (B, T, 18), values (B, T), hidden (B, S) after the last of them.
        """

    @abc.abstractmethod
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

    @abc.abstractmethod
    def step_table(self) -> Any:
        """The constants of `step` for the current weights; make a new one when they change."""

    @abc.abstractmethod
    def step(
        self, table: Any, previous_token: Tensor, encoding: Encoding, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the same network: what rollouts run, without gradients.

        Args:
            table: of the current weights.
            previous_token: (B,) int32 or int64.
            encoding: of `begin`.
            hidden: (B, S).

        Returns:
            logits (B, 18), values (B,), hidden (B, S).
        """

    @torch.no_grad()
    def hidden_states(
        self, context: np.ndarray, stage: np.ndarray, actions: np.ndarray
    ) -> np.ndarray:
        """(B, T, S) float32: the states that the actions (B, T) were chosen from."""
        encoding, hidden = self.begin(torch.from_numpy(context), torch.from_numpy(stage))
        table, token, states = self.step_table(), torch.full((len(actions),), CTX), []
        for column in actions.T:
            _, _, hidden = self.step(table, token, encoding, hidden)
            states.append(hidden.numpy())
            token = torch.from_numpy(column.astype(np.int64))
        return np.stack(states, 1)


class Packing(NamedTuple):
    """Where the steps of B sequences of different lengths stand when they are *packed*:

    time-major without padding, the longest sequence first: the N_0 sequences' step 0, then the
    N_1 <= N_0 sequences' step 1, and so on; N steps in all.
    """

    order: Tensor  # (B,) the sequences by falling length
    place: Tensor  # (N,) each packed step's index in the flattened (B, T)
    sizes: list[int]  # N_0, N_1, ...


def pack(lengths: Tensor, steps: int) -> Packing:
    """The packing of (B,) sequences in a (B, `steps`) array."""
    order = torch.argsort(lengths, descending=True, stable=True)  # (B,)
    step = torch.arange(steps, device=lengths.device)
    alive = lengths[order].unsqueeze(1) > step  # (B, T), a falling staircase
    sizes = [size for size in alive.sum(0).tolist() if size]
    place = (order * steps + step.unsqueeze(1))[alive.t()]  # (N,)
    return Packing(order, place, sizes)


def unpack(packed: Tensor, packing: Packing, rows: int, steps: int) -> Tensor:
    """(N, W) packed steps in their places: (`rows`, `steps`, W), 0 where there is none."""
    flat = packed.new_zeros(rows * steps, packed.shape[1]).index_copy(0, packing.place, packed)
    return flat.view(rows, steps, -1)


def one_of_each_run(context: Tensor) -> tuple[Tensor, Tensor | None]:
    """Contexts without repetitions of the one before, and how to repeat them again.

    The episodes of a group play one problem and stand side by side; it need be read only once.

    Returns:
        (P, L) contexts and (B,) the row of each original; None if nothing is repeated.
    """
    fresh = torch.ones(len(context), dtype=torch.bool, device=context.device)
    fresh[1:] = (context[1:] != context[:-1]).any(1)
    if bool(fresh.all()):
        return context, None
    return context[fresh], torch.cumsum(fresh, 0) - 1
