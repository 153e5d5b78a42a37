"""Greedy episodes of single problems, step by step, as data and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.tasks import Task
from toolagent.vocabulary import ANS, CTX, TOKEN_NAMES

CURSOR = "cursor"  # a register that moves with every operand read; it holds no result


@dataclass(frozen=True)
class Step:
    """One action and what it did."""

    token: int
    probability: float
    runner_up: int  # the most probable of the other tokens
    runner_up_probability: float
    value: float  # the critic's, before the action
    registers: dict[str, int | str | None]  # after the action; None where empty
    changed: tuple[str, ...]  # the names of the registers that the action changed
    reward: float
    probabilities: tuple[float, ...] = ()  # of all 18 tokens


@dataclass(frozen=True)
class Trajectory:
    """The greedy agent's episode on one problem."""

    stage: int
    formula: str  # 'a*b+c'; the expression itself where a stage has no common formula
    problem: str  # '3*4+5'
    target: int
    steps: tuple[Step, ...]
    answered: bool  # with ANS; else it ran out of actions
    answer: int | None  # None also if it answered with an empty register
    solved: bool  # the answer is exactly the target
    terms: dict[str, int] = field(default_factory=dict)  # parts of the problem, by name
    computes: str | None = None  # the formula that the program answers with, if it has one
    judged: dict[str, bool] = field(default_factory=dict)  # what else is told of the program

    @property
    def tokens(self) -> tuple[int, ...]:
        """The program it wrote."""
        return tuple(step.token for step in self.steps)

    @property
    def subgoals(self) -> tuple[str, ...]:
        """The terms of the problem that the answer equals."""
        return tuple(name for name, value in self.terms.items() if value == self.answer)

    @property
    def reward(self) -> float:
        """Undiscounted sum."""
        return sum(step.reward for step in self.steps)


def trajectory(network: AgentNetwork, task: Task, problems: Any) -> Trajectory:
    """Plays one problem greedily and records every step.

    The actions are those of `play`; the probabilities and values are read off a second pass over
    them, `unroll`, the one that the learner runs.

    Args:
        network: on the CPU.
        task: the machine.
        problems: (1,) problems of that task.

    Raises:
        ValueError: it is not exactly one problem.
    """
    if len(problems) != 1:
        raise ValueError(f"a trajectory is of one problem, not of {len(problems)}")
    batch = play(network, task, problems)
    actions = batch.actions[0, : int(batch.lengths[0])]
    log_probabilities, values = _reconsider(network, problems, actions)
    steps: list[Step] = []
    registers = task.start(problems)
    shown = task.show(registers, 0)
    for index, action in enumerate(actions):
        transition = task.step(problems, registers, actions[index : index + 1])
        registers, before, shown = transition.registers, shown, task.show(transition.registers, 0)
        others = log_probabilities[index].clone()
        others[action] = -torch.inf
        runner_up = int(others.argmax())
        steps.append(
            Step(
                token=int(action),
                probability=float(log_probabilities[index, action].exp()),
                runner_up=runner_up,
                runner_up_probability=float(others[runner_up].exp()),
                value=float(values[index]),
                registers=shown,
                changed=tuple(name for name in shown if shown[name] != before[name]),
                reward=float(transition.rewards[0]),
                probabilities=tuple(log_probabilities[index].exp().tolist()),
            )
        )
    formula, text = describe(task, problems, 0)
    judged = task.judge(problems, batch.actions, batch.lengths)
    return Trajectory(
        stage=int(problems.stage[0]),
        formula=formula,
        problem=text,
        target=int(task.target(problems)[0]),
        steps=tuple(steps),
        answered=bool(actions[-1] == ANS),
        answer=answers(task, problems, batch)[0],
        solved=bool(batch.solved[0]),
        terms=task.terms(problems, 0),
        computes=task.computes(actions.tolist()),
        judged={name: bool(right[0]) for name, right in judged.items()},
    )


def answers(task: Task, problems: Any, batch: EpisodeBatch) -> list[int | None]:
    """What each of B finished episodes answered with, found by running its actions again.

    Returns:
        (B,) the answer; None where there was none: out of actions, or an empty register.
    """
    result: list[int | None] = [None] * len(batch)
    registers, live = task.start(problems), np.arange(len(batch))
    for step in range(batch.actions.shape[1]):
        going = batch.lengths[live] > step
        live, registers, problems = live[going], registers.take(going), problems.take(going)
        transition = task.step(problems, registers, batch.actions[live, step])
        registers = transition.registers
        value, filled = task.accumulator(registers)
        for row in np.flatnonzero(transition.terminated & filled):
            result[live[row]] = int(value[row])
    return result


def describe(task: Task, problems: Any, row: int) -> tuple[str, str]:
    """A problem's formula and the same with its numbers: ('a*b+c', '3*4+5')."""
    parts = task.describe(problems, row).split(" = ")  # [formula,] numbers, target
    return parts[0], parts[-2]


def one_line(recorded: Trajectory) -> str:
    """The whole trajectory on one line, with every result as it appears in a register.

    `3*4+5: MUL[0.99] acc=12 -> ADD[0.98] acc=17 -> ANS[0.99]  right`
    """
    parts = []
    for step in recorded.steps:
        results = "".join(
            f" {name}={step.registers[name]}"
            for name in step.changed
            if name != CURSOR and step.registers[name] is not None
        )
        parts.append(f"{TOKEN_NAMES[step.token]}[{probability_text(step.probability, 2)}]{results}")
    if recorded.solved:
        end = "right"
    elif recorded.answer is not None:
        end = f"wrong: {recorded.answer}, not {recorded.target}"
    else:
        end = "wrong: empty register" if recorded.answered else "wrong: no answer"
    return f"{recorded.problem}: {' -> '.join(parts)}  {end}"


def verdict(recorded: Trajectory) -> str:
    """In words, why the answer is right or wrong."""
    target = f"the target is {recorded.target}"
    if not recorded.answered:
        return f"no answer in {len(recorded.steps)} actions: wrong; {target}"
    if recorded.answer is None:
        return f"answered with an empty register: wrong; {target}"
    # A reward of 1 is paid for the answer that the machine checks, 0.2 and less for shaping.
    paid = recorded.reward >= 1
    if recorded.solved:
        text = f"answers {recorded.answer} = {recorded.problem}: right"
        return text if paid else f"{text}, but this task's reward checks another target"
    text = f"answers {recorded.answer}, {target}: wrong"
    if recorded.terms:
        parts = " and ".join(recorded.subgoals) or "no part of the problem"
        text += f"; {recorded.answer} is {parts}"
    return f"{text}, which this task's reward takes for right" if paid else text


def probability_text(probability: float, digits: int) -> str:
    """A probability, rounded down: '1.00' is certain, '0.99' may be 0.9999."""
    if not math.isfinite(probability):  # weights so large that the logits overflow
        return "nan"
    scale = 10**digits
    return f"{int(probability * scale) / scale:.{digits}f}"


def _reconsider(
    network: AgentNetwork, problems: Any, actions: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, 18) log-probabilities and (T,) values of one episode of T actions."""
    previous = torch.tensor([[CTX, *actions[:-1].tolist()]])  # (1, T)
    with torch.no_grad():
        encoding, hidden = network.begin(
            torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
        )
        logits, values, _ = network.unroll(previous, encoding, hidden)  # (1, T, 18), (1, T)
        return torch.log_softmax(logits[0], 1), values[0]
