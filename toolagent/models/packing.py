"""Episodes as the learner's networks compute them: step by step, without padding, each once.

Shapes: B episodes, T steps, L context tokens, R tokens of a response.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MOST_PROBLEMS = 0.5  # to an episode; where there are more, little is shared


class Packing(NamedTuple):
    """Where the steps of B sequences of different lengths stand when they are *packed*:

    time-major without padding: N_0 sequences' step 0, then N_1 step 1, and so on; N steps in all.

    Without `parents` each sequence has steps of its own, the longest sequence first: N_0 >= N_1
    >= ..., and step i at a time goes on from step i of the time before. With them, sequences that
    are alike up to a step share it: the steps are a tree, and a sequence a way from its root.
    """

    order: Tensor  # (N_0,) a sequence that has that first step
    place: Tensor  # (N,) each packed step's index in the flattened (B, T); the first, if shared
    sizes: list[int]  # N_0, N_1, ...
    parents: list[Tensor] | None = None  # of each time but the first, (N_t,): see above
    # With `parents`, of all steps that there are: (M,) their indices in the flattened (B, T), and
    # (M,) which packed step each of them is.
    shared: tuple[Tensor, Tensor] | None = None

    def each(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Of (N, W) packed steps the row of each step that there is, (M, W), and (M,) its index in
        the flattened (B, T)."""
        if self.shared is None:
            return packed, self.place
        place, number = self.shared
        return packed.index_select(0, number), place


def pack(lengths: Tensor, steps: int) -> Packing:
    """The packing of (B,) sequences in a (B, `steps`) array, nothing shared."""
    order = torch.argsort(lengths, descending=True, stable=True)  # (B,)
    step = torch.arange(steps, device=lengths.device)
    alive = lengths[order].unsqueeze(1) > step  # (B, T), a falling staircase
    sizes = [size for size in alive.sum(0).tolist() if size]
    place = (order * steps + step.unsqueeze(1))[alive.t()]  # (N,)
    return Packing(order, place, sizes)


def pack_episodes(
    context: Tensor,
    stage: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    responses: Tensor | None = None,
) -> Packing:
    """The packing of episodes, in which those of one problem share what they have in common.

    Episodes of a group stand side by side. Until they choose differently, or are answered
    differently, a network computes the same for all of them; with groups of 8 that is about half of
    all steps. Their gradients add up in the step that they share.

    Sorted by all that was observed, an episode has its first steps in common with the one before
    it, and the rest of them begins branches of its own.

    Args:
        context: (B, L) integers.
        stage: (B,) integers.
        tokens: (B, T) the token before each step.
        lengths: (B,) integers >= 1.
        responses: (B, T, R) what each of those tokens was answered with; None: nothing.

    Returns:
        On a CPU, where `same_problems` finds some, a tree; else `pack`'s.
    """
    rows, steps = tokens.shape
    problem = None
    if tokens.device.type == "cpu":
        problem = same_problems(context.numpy(), stage.numpy())
    if problem is None:
        return pack(lengths, steps)
    alive = lengths.numpy()[:, None] > np.arange(steps)  # (B, T)
    observed = tokens.numpy()[:, :, None].astype(np.int16)
    if responses is not None:
        observed = np.concatenate([observed, responses.numpy().astype(np.int16)], 2)
    observed = np.where(alive[:, :, None], observed, -1)
    order = np.lexsort((*observed.reshape(rows, -1).T[::-1], problem))
    alive, observed, problem = alive[order], observed[order], problem[order]
    differs = (observed[1:] != observed[:-1]).any(2)  # (B - 1, T)
    differs[:, 0] |= problem[1:] != problem[:-1]
    own = alive.copy()  # (B, T): from where it differs on, an episode's steps are its own
    own[1:] &= np.logical_or.accumulate(differs, 1)
    number = np.cumsum(own, 0) - 1  # among those of its time: that of the latest owner
    sizes = [int(size) for size in own.sum(0) if size]
    firsts = np.concatenate([[0], np.cumsum(own.sum(0))[:-1]])
    at, row = own.T.nonzero()  # by time, then by row
    place = order[row] * steps + at
    parents = number[row, at - 1]
    row_shown, at_shown = alive.nonzero()
    return Packing(
        torch.from_numpy(order[row[: sizes[0]]]),
        torch.from_numpy(place),
        sizes,
        list(torch.from_numpy(parents[sizes[0] :]).split(sizes[1:])),
        (
            torch.from_numpy(order[row_shown] * steps + at_shown),
            torch.from_numpy(firsts[at_shown] + number[row_shown, at_shown]),
        ),
    )


def same_problems(context: np.ndarray, stage: np.ndarray) -> np.ndarray | None:
    """Which problem each of B episodes plays, (B,) from 0 on; equal ones stand side by side.

    Args:
        context: (B, L) integers.
        stage: (B,) integers.

    Returns:
        None: so few are like the one before them that it is not worth looking for what they share.
    """
    fresh = np.ones(len(stage), bool)
    fresh[1:] = (stage[1:] != stage[:-1]) | (context[1:] != context[:-1]).any(1)
    return None if fresh.sum() > _MOST_PROBLEMS * len(fresh) else np.cumsum(fresh) - 1


def add_to_parents(gradients: Tensor, parents: Tensor, size: int) -> Tensor:
    """(`size`, W): for each of `size` steps the sum of those of (n, W) gradients that `parents`,
    (n,), says are for it."""
    return gradients.new_zeros(size, gradients.shape[1]).index_add_(0, parents, gradients)


def unpack(packed: Tensor, packing: Packing, rows: int, steps: int) -> Tensor:
    """(N, W) packed steps in their places: (`rows`, `steps`, W), 0 where there is none."""
    packed, place = packing.each(packed)
    flat = packed.new_zeros(rows * steps, packed.shape[1]).index_copy(0, place, packed)
    return flat.view(rows, steps, -1)


def unpack_heads(
    heads: Tensor, packing: Packing, actions: int, rows: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Logits (`rows`, `steps`, A) and values (`rows`, `steps`), 0 where there is no step.

    As `unpack` and two slices, whose gradients autograd would fill up and add.

    Args:
        heads: (N, A + 1 or more), packed: A logits, a value, and what else there is.
        packing: of them.
        actions: A.
        rows: B.
        steps: T.
    """
    return _UnpackedHeads.apply(heads, packing, actions, rows, steps)


class _UnpackedHeads(torch.autograd.Function):
    """See `unpack_heads`."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, packing: Packing, actions: int, rows: int, steps: int
    ) -> tuple[Tensor, Tensor]:
        ctx.packing, ctx.shape, ctx.actions = packing, heads.shape, actions
        heads, place = packing.each(heads)
        logits = heads.new_zeros(rows * steps, actions).index_copy_(0, place, heads[:, :actions])
        values = heads.new_zeros(rows * steps).index_copy_(0, place, heads[:, actions])
        return logits.view(rows, steps, -1), values.view(rows, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_logits, d_values = gradients
        actions, shared = ctx.actions, ctx.packing.shared
        place = ctx.packing.place if shared is None else shared[0]
        d_heads = d_logits.new_zeros(len(place), ctx.shape[1])
        d_heads[:, :actions] = d_logits.flatten(0, 1).index_select(0, place)
        d_heads[:, actions] = d_values.flatten().index_select(0, place)
        if shared is not None:
            d_heads = add_to_parents(d_heads, shared[1], ctx.shape[0])
        return d_heads, None, None, None, None


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
