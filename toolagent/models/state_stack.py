"""A GRU with a stack of its own states over whole sequences, forward and backward written out.

A gradient by torch's own differentiation would take three times as long: it keeps and adds up a
tensor of zeros for each slice of each stack.

Shapes: P sequences, L tokens, D the width of a state, M entries of the stack at most; m of them at
a token, the top first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from toolagent.models.packed_gru import GRUTable, gru_step, tanh_

PUSH, POP, KEEP = range(3)  # the columns of gates


def stack_step(
    table: GRUTable,
    call_state: Tensor,
    inputs: Tensor,
    gates: Tensor,
    hidden: Tensor,
    stack: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """One token.

    Args:
        table: of the GRU.
        call_state: (D,) that a push starts from.
        inputs: (P, 3D) of the token, a row of `table.inputs`.
        gates: (P, 3) push, pop and keep.
        hidden: (P, D) the state before the token.
        stack: (P, m, D).
        most: M; what is pushed beyond falls off the bottom.

    Returns:
        The state (P, D) and the stack (P, m', D) behind the token, m' = min(m + 1, M).
    """
    push, pop, keep = gates.unsqueeze(2).unbind(1)  # (P, 1)
    entries = _with_a_push(hidden, stack)
    hidden = push * call_state + pop * entries[:, 1] + keep * hidden
    stack = _moved(gates, entries, min(stack.shape[1] + 1, most))
    return gru_step(table, inputs, hidden), stack


def _with_a_push(hidden: Tensor, stack: Tensor) -> Tensor:
    """(P, m + 3, D): the stack with what a push puts on it, and zeros below; what each action
    makes of the stack is a slice of it, which begins with the first, second or third entry."""
    return torch.cat([hidden.unsqueeze(1), functional.pad(stack, (0, 0, 0, 2))], 1)


def _moved(gates: Tensor, entries: Tensor, size: int) -> Tensor:
    """(P, `size`, D): what the actions make of the stack, mixed."""
    push, pop, keep = gates.view(-1, 3, 1, 1).unbind(1)
    stack = push * entries[:, :size]
    return stack.addcmul_(keep, entries[:, 1 : size + 1]).addcmul_(pop, entries[:, 2 : size + 2])


class StackedGRU(torch.autograd.Function):
    """`stack_step` over all tokens of P sequences, from an empty stack and the call's state on."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        gates: Tensor,
        gate_weight: Tensor,
        candidate_weight: Tensor,
        candidate_bias: Tensor,
        call_state: Tensor,
        noise: Tensor | None,
        most: int,
    ) -> Tensor:
        """Args:
            inputs: (L, P, 3D), of the tokens.
            gates: (L, P, 3).
            gate_weight: (D, 2D), columns of `GRUTable.recurrent_weight`.
            candidate_weight: (D, D), the others.
            candidate_bias: (D,).
            call_state: (D,).
            noise: (L, P, D), added to the state behind each token; None: nothing.
            most: M.

        Returns:
            (L, P, D) the state before each token.
        """
        length, rows, width = *inputs.shape[:2], len(call_state)
        before, going_on, reset_update, new, recurrent = (
            inputs.new_empty(length, rows, columns * width) for columns in (1, 1, 2, 1, 1)
        )
        hidden = call_state.expand(rows, -1)
        stack = inputs.new_zeros(rows, 0, width)
        stacks = []
        for token in range(length):
            before[token] = hidden
            push, pop, keep = gates[token].unsqueeze(2).unbind(1)
            entries = _with_a_push(hidden, stack)
            stacks.append(entries)
            state, both, candidate = going_on[token], reset_update[token], new[token]
            torch.mul(push, call_state, out=state)
            state.addcmul_(pop, entries[:, 1]).addcmul_(keep, hidden)
            stack = _moved(gates[token], entries, min(stack.shape[1] + 1, most))
            torch.addmm(inputs[token, :, : 2 * width], state, gate_weight, out=both).sigmoid_()
            torch.addmm(candidate_bias, state, candidate_weight, out=recurrent[token])
            torch.addcmul(
                inputs[token, :, 2 * width :], both[:, :width], recurrent[token], out=candidate
            )
            tanh_(candidate)
            hidden = torch.lerp(candidate, state, both[:, width:])
            if noise is not None:
                hidden = hidden + noise[token]
        ctx.save_for_backward(
            *(gates, gate_weight, candidate_weight, call_state),
            *(before, going_on, reset_update, new, recurrent, *stacks),
        )
        return before

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of inputs, gates, the three weights and the call's state."""
        gates, gate_weight, candidate_weight, call_state, *steps = ctx.saved_tensors
        before, going_on, reset_update, new, recurrent, *stacks = steps
        (d_before,) = gradients
        length, rows, width = before.shape
        two = 2 * width
        d_inputs = before.new_empty(length, rows, 3 * width)
        d_recurrent = torch.empty_like(before)
        d_gates = torch.empty_like(gates)
        d_going_on = torch.empty_like(before)
        d_hidden = torch.zeros_like(before[0])  # of the state behind a token
        d_stack = stacks[0].new_zeros(rows, 0, width)  # of the stack behind it
        for token in reversed(range(length)):
            entries, state, candidate = stacks[token], going_on[token], new[token]
            reset, update = reset_update[token].split(width, 1)
            d_state = d_going_on[token]
            torch.mul(d_hidden, update, out=d_state)
            d_new = (d_hidden - d_state) * (1.0 - candidate * candidate)
            d_inputs[token, :, two:] = d_new
            torch.mul(d_new, reset, out=d_recurrent[token])
            d_both = d_inputs[token, :, :two]
            d_both[:, :width] = d_new * recurrent[token]
            d_both[:, width:] = d_hidden * (state - candidate)
            d_both *= reset_update[token] * (1.0 - reset_update[token])
            d_state.addmm_(d_both, gate_weight.t())
            d_state.addmm_(d_recurrent[token], candidate_weight.t())
            # Of the state that the GRU goes on from.
            top, hidden = entries[:, 1], before[token]
            choices = torch.stack([call_state.expand_as(hidden), top, hidden], 1)  # (P, 3, D)
            torch.bmm(choices, d_state.unsqueeze(2), out=d_gates[token].unsqueeze(2))
            push, pop, keep = gates[token].view(-1, 3, 1, 1).unbind(1)
            d_entries = torch.zeros_like(entries)
            size = d_stack.shape[1]
            if size:
                for column, gate, first in ((PUSH, push, 0), (KEEP, keep, 1), (POP, pop, 2)):
                    part = slice(first, first + size)
                    d_entries[:, part].addcmul_(gate, d_stack)
                    d_gates[token, :, column] += (d_stack * entries[:, part]).sum((1, 2))
            d_entries[:, 1].addcmul_(pop[:, 0], d_state)
            d_hidden = d_entries[:, 0].addcmul_(keep[:, 0], d_state).add_(d_before[token])
            d_stack = d_entries[:, 1:-2]
        flat, states = d_inputs.flatten(0, 1), going_on.flatten(0, 1)
        d_recurrent = d_recurrent.flatten(0, 1)
        pushes = gates[:, :, PUSH].flatten()
        return (
            d_inputs,
            d_gates,
            states.t() @ flat[:, :two],
            states.t() @ d_recurrent,
            d_recurrent.sum(0),
            pushes @ d_going_on.flatten(0, 1) + d_hidden.sum(0),
            None,
            None,
        )


class SlotWeights(torch.autograd.Function):
    """How much each of I slots is the t-th open one, t = 0 .. T-1: that it is open, and t before
    it are. Of (P, I), how far each slot is open, 0..1, and T, to (P, I, T)."""

    @staticmethod
    def forward(ctx: Any, opened: Tensor, steps: int) -> Tensor:
        """What is open beyond T steps counts nowhere."""
        rows, slots = opened.shape
        before = opened.new_zeros(slots, rows, steps)  # that t slots are open before this one
        weights = torch.empty_like(before)
        so_far = opened.new_zeros(rows, steps)
        so_far[:, 0] = 1.0
        for slot in range(slots):
            before[slot] = so_far
            torch.mul(so_far, opened[:, slot, None], out=weights[slot])
            so_far = so_far - weights[slot]
            so_far[:, 1:] += weights[slot, :, :-1]
        ctx.save_for_backward(opened, before)
        return weights.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `opened`."""
        opened, before = ctx.saved_tensors
        d_weights = gradients[0].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        d_so_far = torch.zeros_like(before[0])
        for slot in reversed(range(len(before))):
            d_slot = d_weights[slot].sub_(d_so_far)
            d_slot[:, :-1] += d_so_far[:, 1:]
            d_so_far = d_so_far.addcmul_(d_slot, opened[:, slot, None])
        return (d_weights * before).sum(2).t(), None
