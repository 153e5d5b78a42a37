"""Episodes to probe: the actions, and the machine's registers before each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.play import PlayedStep, play
from toolagent.tasks import Task
from toolagent.tasks.calculator import CalculatorRegisters
from toolagent.tasks.expression import ExpressionTask
from toolagent.tasks.stack_machine import StackRegisters

REPLACED = 0.3  # of the tokens of every second episode
FEWEST, MOST = 3, 5  # operands of the expressions that are probed

Labels = dict[str, tuple[np.ndarray, np.ndarray]]  # name: values (B, T), and (B, T) where known


@dataclass
class Examples:
    """Every step of B episodes of up to T tokens."""

    problems: Any
    actions: np.ndarray  # (B, T)
    response: np.ndarray  # (B, T, R)
    live: np.ndarray  # (B, T) bool: the episode is not over before this step
    status: np.ndarray  # (B, T): of the machine before the step
    numbers: Labels = field(default_factory=dict)
    kinds: Labels = field(default_factory=dict)


def draw(task: Task, rng: np.random.Generator, held_out: bool, count: int) -> Any:
    """Problems to fit on or, held out, to score on: none is in both.

    Expressions are held out by their skeletons, digits by a hash of all five (a third of them).
    """
    if isinstance(task, ExpressionTask):
        fewest = 4 if held_out else FEWEST  # fewer operands have no skeletons that are held out
        stage = rng.integers(fewest, MOST + 1, count).astype(np.int8)
        return task.sample(rng, stage, "held_out" if held_out else "seen")
    stage = np.full(8 * count, task.stages[-1], np.int8)
    problems = task.sample(rng, stage)
    code = problems.digits.astype(np.int64) @ (10 ** np.arange(problems.digits.shape[1]))
    kept = (code * 2654435761 % 2**32 % 3 == 0) == held_out
    return problems.take(np.flatnonzero(kept)[:count])


def wander(
    network: AgentNetwork, task: Task, rng: np.random.Generator, held_out: bool, count: int
) -> Examples:
    """Greedy episodes, and as many with tokens replaced at random and without an answer."""
    problems = draw(task, rng, held_out, count)
    walk = _RandomWalk(task, len(problems), rng)
    batch = play(network, task, problems, chooser=walk, observer=walk)
    length = int(batch.lengths.max())
    return Examples(
        problems,
        actions=batch.actions[:, :length].astype(np.int64),
        response=batch.response[:, :length],
        live=np.arange(length) < batch.lengths[:, None],
        status=walk.status[:, :length],
        numbers=_cut(walk.numbers, length),
        kinds=_cut(walk.kinds, length),
    )


def _cut(labels: Labels, length: int) -> Labels:
    return {
        name: (values[:, :length], known[:, :length]) for name, (values, known) in labels.items()
    }


class _RandomWalk:
    """Replaces tokens of every second episode, and notes what the machine held before each."""

    def __init__(self, task: Task, size: int, rng: np.random.Generator):
        self._task, self._rng, self._size = task, rng, size
        vocabulary = task.vocabulary
        self._answer = vocabulary.answer_token
        names = [name for name in task.tools if name != vocabulary.answer]
        # Expressions are made of digits, which are tools there: they push themselves.
        if isinstance(task, ExpressionTask):
            names += [name for name in vocabulary.actions if name.isdigit()]
        self._tools = np.array([vocabulary.token(name) for name in names])
        self._shape = (size, task.max_actions)
        self.status = np.zeros(self._shape, np.int64)
        self.numbers: Labels = {}
        self.kinds: Labels = {}

    def tokens(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """(n,) tokens (see `rollouts.play.Chooser`)."""
        token = logits.argmax(1)
        # For all episodes, over or not: what one of them does changes nothing in the others.
        drawn = torch.from_numpy(self._rng.random(self._size) < REPLACED)[rows]
        instead = torch.from_numpy(self._rng.choice(self._tools, self._size))[rows]
        replaced = (rows % 2 == 1) & (drawn | (token == self._answer))
        return torch.where(replaced, instead, token)

    def observe(self, step: PlayedStep) -> None:
        """Notes what the machine held before the step (see `rollouts.play.Observer`)."""
        registers, problems = step.before, step.problems
        every = np.ones(len(step.rows), bool)
        status = self._task.status(registers)
        self.status[step.rows, step.number] = status
        if isinstance(registers, StackRegisters):
            self._note(self.kinds, "stack depth", step, registers.depth, every)
            return
        self._note(self.numbers, "accumulated value", step, *self._task.accumulator(registers))
        if isinstance(registers, CalculatorRegisters):
            r, digits = registers, problems.digits
            shown = problems.stage + 3
            next_digit = digits[np.arange(len(digits)), np.minimum(r.cursor, digits.shape[1] - 1)]
            self._note(self.numbers, "stored value", step, r.mem, r.mem_filled)
            self._note(
                self.numbers,
                "next operand",
                step,
                np.where(r.latch_filled, r.latch, next_digit),
                ~r.latch_filled & (r.cursor < shown),
            )
        self._note(self.kinds, "machine status", step, status, every)

    def _note(
        self, labels: Labels, name: str, step: PlayedStep, values: np.ndarray, known: np.ndarray
    ) -> None:
        """Values (n,), and (n,) bool where they are known."""
        if name not in labels:
            labels[name] = (np.zeros(self._shape, np.int64), np.zeros(self._shape, bool))
        place = (step.rows, step.number)
        labels[name][0][place], labels[name][1][place] = values, known


def expression_plans(
    task: ExpressionTask, rng: np.random.Generator, held_out: bool, count: int
) -> Examples:
    """Episodes along the shortest plans: what has to be known to go on with them."""
    problems = draw(task, rng, held_out, count)
    shape = (len(problems), 2 * MOST)
    result = Examples(
        problems,
        np.full(shape, task.vocabulary.answer_token),
        np.zeros((*shape, 0), np.int8),
        np.zeros(shape, bool),
        np.zeros(shape, int),
    )
    place, place_known = np.zeros(shape, int), np.zeros(shape, bool)
    operator, operator_known = np.zeros(shape, int), np.zeros(shape, bool)
    digits = {token for token, name in enumerate(task.vocabulary.names) if name.isdigit()}
    for row, context in enumerate(problems.context.tolist()):
        plan = task.plan(problems, row) or ()
        places = [index for index, token in enumerate(context) if token in digits]
        result.actions[row, : len(plan)] = plan
        result.live[row, : len(plan)] = True
        for step in range(len(plan)):
            written = sum(token in digits for token in plan[:step])
            if written < len(places):
                place[row, step], place_known[row, step] = places[written], True
            ahead = [token for token in plan[step:-1] if token not in digits]
            if ahead:
                operator[row, step], operator_known[row, step] = ahead[0], True
    result.kinds = {
        "place of the next operand": (place, place_known),
        "next operator": (operator, operator_known),
    }
    return result
