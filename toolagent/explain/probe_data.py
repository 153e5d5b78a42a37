"""Episodes to probe: what the agent played, and what the machine held before each token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.tasks import Task
from toolagent.tasks.calculator import CalculatorRegisters
from toolagent.tasks.expression import ExpressionTask
from toolagent.tasks.stack_machine import StackRegisters
from toolagent.vocabulary import ADD, ANS, CTX, MUL, RCL, STO, SUB

REPLACED = 0.3  # of the tokens of every second episode
TOOLS = np.array([MUL, ADD, SUB, STO, RCL])
FEWEST, MOST = 3, 5  # operands of the expressions that are probed

Labels = dict[str, tuple[np.ndarray, np.ndarray]]  # name: values (B, T), and (B, T) where known


@dataclass
class Examples:
    """Every step of B episodes of up to T tokens."""

    problems: Any
    actions: np.ndarray  # (B, T)
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
    """Greedy episodes, and as many with tokens replaced at random, in which `ANS` is never said."""
    problems = draw(task, rng, held_out, count)
    size, length = len(problems), task.max_actions
    tools = TOOLS
    if isinstance(task, ExpressionTask):
        tools, length = np.concatenate([TOOLS, np.arange(10)]), 2 * MOST
    odd = np.arange(size) % 2 == 1
    table, registers = network.step_table(), task.start(problems)
    result = Examples(
        problems,
        actions=np.zeros((size, length), np.int64),
        live=np.zeros((size, length), bool),
        status=np.zeros((size, length), np.int64),
    )
    going = np.ones(size, bool)
    with torch.no_grad():
        encoding, hidden = network.begin(
            torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
        )
        token = torch.full((size,), CTX)
        for step in range(length):
            result.live[:, step] = going
            result.status[:, step] = task.status(registers)
            _label(result, task, problems, registers, step)
            logits, _, hidden = network.step(table, token, encoding, hidden)
            chosen = logits.argmax(1).numpy()
            replaced = odd & ((rng.random(size) < REPLACED) | (chosen == ANS))
            chosen = np.where(replaced, rng.choice(tools, size), chosen)
            result.actions[:, step] = chosen
            registers = task.step(problems, registers, chosen).registers
            going = going & (chosen != ANS)
            token = torch.from_numpy(chosen)
    return result


def _label(result: Examples, task: Task, problems: Any, registers: Any, step: int) -> None:
    """What the machine holds before a step."""

    def put(labels: Labels, name: str, values: np.ndarray, known: np.ndarray) -> None:
        shape = result.actions.shape
        every = labels.setdefault(name, (np.zeros(shape, np.int64), np.zeros(shape, bool)))
        every[0][:, step], every[1][:, step] = values, known

    if isinstance(registers, StackRegisters):
        put(result.kinds, "stack depth", registers.depth, np.ones(len(problems), bool))
        return
    put(result.numbers, "accumulated value", *task.accumulator(registers))
    if isinstance(registers, CalculatorRegisters):
        r, digits = registers, problems.digits
        shown = problems.stage + 3
        next_digit = digits[np.arange(len(digits)), np.minimum(r.cursor, digits.shape[1] - 1)]
        put(result.numbers, "stored value", r.mem, r.mem_filled)
        put(
            result.numbers,
            "next operand",
            np.where(r.latch_filled, r.latch, next_digit),
            ~r.latch_filled & (r.cursor < shown),
        )
    status = task.status(registers)
    put(result.kinds, "machine status", status, np.ones(len(status), bool))


def expression_plans(
    task: ExpressionTask, rng: np.random.Generator, held_out: bool, count: int
) -> Examples:
    """Episodes along the shortest plans: what has to be known to go on with them."""
    problems = draw(task, rng, held_out, count)
    shape = (len(problems), 2 * MOST)
    result = Examples(problems, np.full(shape, ANS), np.zeros(shape, bool), np.zeros(shape, int))
    place, place_known = np.zeros(shape, int), np.zeros(shape, bool)
    operator, operator_known = np.zeros(shape, int), np.zeros(shape, bool)
    for row, context in enumerate(problems.context.tolist()):
        plan = task.plan(problems, row) or ()
        places = [index for index, token in enumerate(context) if token < 10]
        result.actions[row, : len(plan)] = plan
        result.live[row, : len(plan)] = True
        for step in range(len(plan)):
            written = sum(token < 10 for token in plan[:step])
            if written < len(places):
                place[row, step], place_known[row, step] = places[written], True
            ahead = [token for token in plan[step:-1] if token >= 10]
            if ahead:
                operator[row, step], operator_known[row, step] = ahead[0], True
    result.kinds = {
        "place of the next operand": (place, place_known),
        "next operator": (operator, operator_known),
    }
    return result
