"""Task `calculator`: the task as the tutorial describes it, on a machine that can solve it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolagent.tasks.arithmetic import (
    NUM_DIGITS,
    SHAPING_COEFFICIENT,
    ArithmeticProblems,
    ArithmeticTask,
    shaping,
)
from toolagent.tasks.base import Registers, Transition
from toolagent.tasks.tokens import ADD, ANS, MUL, RCL, STO, SUB


@dataclass
class CalculatorRegisters(Registers):
    """`acc`, `mem`, `latch` (0 where empty) and a cursor over the shown digits."""

    acc: np.ndarray  # (B,) int64
    mem: np.ndarray  # (B,) int64
    latch: np.ndarray  # (B,) int64
    acc_filled: np.ndarray  # (B,) bool
    mem_filled: np.ndarray  # (B,) bool
    latch_filled: np.ndarray  # (B,) bool
    cursor: np.ndarray  # (B,) int8: the next digit's index


class CalculatorTask(ArithmeticTask):
    """A machine with three registers and a cursor over the shown digits.

    - `MUL` with empty acc: if two digits are left, acc = next*next; else nothing.
    - `MUL`/`ADD`/`SUB` with filled acc: the operand is the latch if filled (it is then emptied),
      else the next digit; with neither, nothing. acc = acc op operand.
    - `ADD`/`SUB` with empty acc: nothing.
    - `STO` with filled acc: mem = acc, acc emptied.
    - `RCL` with filled mem: if acc is filled it moves to the latch; then acc = mem, mem emptied.
    - `ANS` ends the episode: 1 if acc equals the target, plus shaping read off acc.
    """

    name = "calculator"

    def start(self, problems: ArithmeticProblems) -> CalculatorRegisters:
        size = len(problems)
        return CalculatorRegisters(
            steps=np.zeros(size, np.int8),
            acc=np.zeros(size, np.int64),
            mem=np.zeros(size, np.int64),
            latch=np.zeros(size, np.int64),
            acc_filled=np.zeros(size, bool),
            mem_filled=np.zeros(size, bool),
            latch_filled=np.zeros(size, bool),
            cursor=np.zeros(size, np.int8),
        )

    def step(
        self, problems: ArithmeticProblems, registers: CalculatorRegisters, actions: np.ndarray
    ) -> Transition:
        r = registers
        shown = problems.stage + np.int8(3)
        flat = problems.digits.reshape(-1)
        row = np.arange(len(shown)) * NUM_DIGITS
        digit = flat[row + np.minimum(r.cursor, NUM_DIGITS - 1)]

        multiply, add, subtract = actions == MUL, actions == ADD, actions == SUB
        store = (actions == STO) & r.acc_filled
        recall = (actions == RCL) & r.mem_filled
        # With an empty acc, MUL takes two digits: the product of the first two is all it can be,
        # but only while the cursor stands before them (STO empties acc with the cursor further on).
        begin = multiply & ~r.acc_filled & (r.cursor + 2 <= shown)
        operate = (multiply | add | subtract) & r.acc_filled & (r.latch_filled | (r.cursor < shown))
        from_digits = operate & ~r.latch_filled
        operand = np.where(r.latch_filled, r.latch, digit)
        second = flat[row + np.minimum(r.cursor + 1, NUM_DIGITS - 1)]

        result = np.where(
            multiply, r.acc * operand, np.where(add, r.acc + operand, r.acc - operand)
        )
        acc = np.where(operate, result, r.acc)
        acc = np.where(begin, digit.astype(np.int64) * second, acc)
        acc = np.where(recall, r.mem, acc)
        acc[store] = 0
        move_to_latch = recall & r.acc_filled

        steps = r.steps + np.int8(1)
        terminated = actions == ANS
        rewards = np.zeros(len(steps))
        solved = np.zeros(len(steps), bool)
        if terminated.any():
            answered = np.flatnonzero(terminated)
            posed = problems.take(answered)
            value, filled = r.acc[answered], r.acc_filled[answered]
            right = filled & (value == self.target(posed))
            solved[answered] = right
            rewards[answered] = right + SHAPING_COEFFICIENT * shaping(posed, value, filled)
        return Transition(
            registers=CalculatorRegisters(
                steps=steps,
                acc=acc,
                mem=np.where(store, r.acc, np.where(recall, 0, r.mem)),
                latch=np.where(move_to_latch, r.acc, np.where(operate, 0, r.latch)),
                acc_filled=(r.acc_filled | begin | recall) & ~store,
                mem_filled=(r.mem_filled | store) & ~recall,
                latch_filled=(r.latch_filled & ~operate) | move_to_latch,
                cursor=r.cursor + from_digits + 2 * begin.astype(np.int8),
            ),
            rewards=rewards,
            terminated=terminated,
            truncated=~terminated & (steps >= self.max_actions),
            solved=solved,
        )

    num_statuses = 8 * (NUM_DIGITS + 1)

    def status(self, registers: CalculatorRegisters) -> np.ndarray:
        r = registers
        filled = (
            r.acc_filled + 2 * r.mem_filled.astype(np.int8) + 4 * r.latch_filled.astype(np.int8)
        )
        return filled + 8 * r.cursor

    def accumulator(self, registers: CalculatorRegisters) -> tuple[np.ndarray, np.ndarray]:
        return registers.acc, registers.acc_filled

    def show(self, registers: CalculatorRegisters, row: int) -> dict[str, int | None]:
        return {
            name: int(getattr(registers, name)[row])
            if getattr(registers, f"{name}_filled")[row]
            else None
            for name in ("acc", "mem", "latch")
        } | {"cursor": int(registers.cursor[row])}
