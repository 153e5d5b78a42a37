"""The stack machine of the task `expression`, for B episodes at once.

- A digit pushes itself; `MUL`/`ADD`/`SUB` pop two and push the result.
- `STO` pops the top into mem; `RCL` pushes mem and empties it.
- With too little on the stack, or no room on it, a token does nothing; nor does any other token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolagent.tasks.base import Registers
from toolagent.tasks.tokens import ADD, ANS, MUL, RCL, STO, SUB

STACK_SIZE = 16
# What `MUL`/`ADD`/`SUB` push: (actions, below, top), (B,) each, to (B,) results.
Operation = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass
class StackRegisters(Registers):
    """The stack (0 above its top), how many entries it has, and mem."""

    stack: np.ndarray  # (B, 16) int64
    depth: np.ndarray  # (B,) int8
    mem: np.ndarray  # (B,) int64, 0 where empty
    mem_filled: np.ndarray  # (B,) bool


def empty_registers(size: int) -> StackRegisters:
    """Of B episodes that begin."""
    return StackRegisters(
        steps=np.zeros(size, np.int8),
        stack=np.zeros((size, STACK_SIZE), np.int64),
        depth=np.zeros(size, np.int8),
        mem=np.zeros(size, np.int64),
        mem_filled=np.zeros(size, bool),
    )


def top_of(registers: StackRegisters) -> tuple[np.ndarray, np.ndarray]:
    """(B,) the tops of the stacks, and (B,) bool where there is one."""
    rows = np.arange(len(registers))
    return registers.stack[rows, np.maximum(registers.depth - 1, 0)], registers.depth > 0


def calculate(actions: np.ndarray, below: np.ndarray, top: np.ndarray) -> np.ndarray:
    """The operation on numbers."""
    return np.where(actions == MUL, below * top, below + np.where(actions == SUB, -top, top))


def use(
    registers: StackRegisters, actions: np.ndarray, pushed: np.ndarray, operation: Operation
) -> StackRegisters:
    """The machine: one action in each of B episodes.

    Args:
        registers: not changed.
        actions: (B,) tokens.
        pushed: (B,) what a digit token pushes.
        operation: what an operator token makes of the two entries that it pops.
    """
    rows = np.arange(len(actions))
    depth, mem = registers.depth, registers.mem
    stack = registers.stack.copy()
    last = np.maximum(depth - 1, 0)
    top, below = stack[rows, last], stack[rows, np.maximum(depth - 2, 0)]
    room = depth < STACK_SIZE
    push = (actions < 10) & room
    recall = (actions == RCL) & registers.mem_filled & room
    operate = ((actions == MUL) | (actions == ADD) | (actions == SUB)) & (depth >= 2)
    store = (actions == STO) & (depth >= 1)

    grows, shrinks = push | recall, operate | store
    after = depth + grows - shrinks.view(np.int8)
    stack[rows[shrinks], last[shrinks]] = 0
    value = np.where(operate, operation(actions, below, top), np.where(push, pushed, mem))
    written = np.flatnonzero(grows | operate)
    stack[written, after[written] - 1] = value[written]
    return StackRegisters(
        steps=registers.steps + np.int8(1),
        stack=stack,
        depth=after,
        mem=np.where(store, top, np.where(recall, 0, mem)),
        mem_filled=(registers.mem_filled | store) & ~recall,
    )


def formulas_of(actions: np.ndarray, lengths: np.ndarray) -> list[tuple[int, ...]]:
    """What each of B programs answers with, as a formula in postfix; () if with nothing.

    The same machine, run on the *numbers of the steps* that pushed an entry instead of values.

    Args:
        actions: (B, T) tokens.
        lengths: (B,) how many of them count; a program without `ANS` among them has no answer.
    """
    size, length = actions.shape
    registers = empty_registers(size)
    popped: list[tuple[np.ndarray, np.ndarray]] = []  # a step: the two entries (B,), if any

    def remember(actions: np.ndarray, below: np.ndarray, top: np.ndarray) -> np.ndarray:
        popped.append((below, top))
        return np.full(size, len(popped) - 1)

    roots = np.full(size, -1)  # the entry that is answered with
    going = lengths > 0
    for step in range(length):
        top, filled = top_of(registers)
        answered = going & (actions[:, step] == ANS)
        roots[answered & filled] = top[answered & filled]
        going = going & ~answered & (step + 1 < lengths)
        registers = use(registers, actions[:, step], np.full(size, step), remember)
    programs = actions.tolist()

    def postfix(row: int, step: int) -> tuple[int, ...]:
        token = programs[row][step]
        if token < 10:
            return (token,)
        below, top = popped[step]
        return (*postfix(row, int(below[row])), *postfix(row, int(top[row])), token)

    return [postfix(row, root) if root >= 0 else () for row, root in enumerate(roots.tolist())]
