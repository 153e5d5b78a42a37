"""Greedy episodes of single problems, step by step, as data and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork, as_responses
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.tasks import Task
from toolagent.vocabulary import Vocabulary

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
    response: tuple[int, ...] = ()  # the tokens that the action was answered with
    probabilities: tuple[float, ...] = ()  # of all actions


@dataclass(frozen=True)
class Trajectory:
    """The greedy agent's episode on one problem."""

    task: Task
    stage: int
    formula: str  # 'a*b+c'; the expression itself where a stage has no common formula
    problem: str  # '3*4+5'
    target: int
    steps: tuple[Step, ...]
    answered: bool  # else it ran out of actions
    # None also if it answered with an empty register, or the task doesn't tell (`accumulator`)
    answer: int | None
    solved: bool  # the answer is exactly the target
    terms: dict[str, int] = field(default_factory=dict)  # parts of the problem, by name
    computes: str | None = None  # the formula that the program answers with, if it has one
    judged: dict[str, bool] = field(default_factory=dict)  # what else is told of the program

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the task."""
        return self.task.vocabulary

    @property
    def response(self) -> np.ndarray:
        """(1, T, R) int8: the tokens that each action was answered with."""
        rows = [step.response for step in self.steps]
        return np.array(rows, np.int8).reshape(1, len(rows), self.task.response_length)

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
    log_probabilities, values = _reconsider(network, problems, batch)
    steps: list[Step] = []
    registers = task.start(problems)
    shown = shown_registers(task, registers, 0)
    for index, action in enumerate(actions):
        transition = task.step(problems, registers, actions[index : index + 1])
        registers = transition.registers
        before, shown = shown, shown_registers(task, registers, 0)
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
                changed=tuple(name for name in shown if shown[name] != before.get(name)),
                reward=float(transition.rewards[0]),
                response=tuple(batch.response[0, index].tolist()),
                probabilities=tuple(log_probabilities[index].exp().tolist()),
            )
        )
    formula, text = describe(task, problems, 0)
    judged = task.judge(problems, batch.actions, batch.lengths)
    (answer,), answered = endings(task, problems, batch)
    return Trajectory(
        task=task,
        stage=int(problems.stage[0]),
        formula=formula,
        problem=text,
        target=int(task.target(problems)[0]),
        steps=tuple(steps),
        answered=bool(answered[0]),
        answer=answer,
        solved=bool(batch.solved[0]),
        terms=task.terms(problems, 0),
        computes=task.computes(actions.tolist()),
        judged={name: bool(right[0]) for name, right in judged.items()},
    )


def shown_registers(task: Task, registers: Any, row: int) -> dict[str, int | str | None]:
    """What a task shows of its registers, in plain values whatever its `show` returns."""
    return {
        str(name): value if value is None or type(value) in (int, str) else _plain(value)
        for name, value in task.show(registers, row).items()
    }


def _plain(value: Any) -> int | str:
    """A number of NumPy's as Python's; anything else as text."""
    array = np.asarray(value)
    return int(value) if array.shape == () and array.dtype.kind in "iu" else str(value)


def response_text(vocabulary: Vocabulary, response: Sequence[int]) -> str:
    """What an action was answered with, without padding; '-' if that is nothing."""
    told = [token for token in response if token != vocabulary.pad_token]
    return vocabulary.text(told) or "-"


def answers(task: Task, problems: Any, batch: EpisodeBatch) -> list[int | None]:
    """What each of B finished episodes answered with (see `endings`)."""
    return endings(task, problems, batch)[0]


def endings(task: Task, problems: Any, batch: EpisodeBatch) -> tuple[list[int | None], np.ndarray]:
    """What each of B finished episodes answered with, found by running its actions again.

    Returns:
        B answers, None where there was none: out of actions, or an empty register. And (B,) bool:
        whether the episode was answered, if only with an empty register.
    """
    result: list[int | None] = [None] * len(batch)
    answered = np.zeros(len(batch), bool)
    registers, live = task.start(problems), np.arange(len(batch))
    for step in range(batch.actions.shape[1]):
        going = batch.lengths[live] > step
        live, registers, problems = live[going], registers.take(going), problems.take(going)
        transition = task.step(problems, registers, batch.actions[live, step])
        registers = transition.registers
        answered[live] = transition.terminated
        value, filled = task.accumulator(registers)
        for row in np.flatnonzero(transition.terminated & filled):
            result[live[row]] = int(value[row])
    return result, answered


def describe(task: Task, problems: Any, row: int) -> tuple[str, str]:
    """A problem's formula and the same with its numbers: ('a*b+c', '3*4+5')."""
    text, _, _ = task.describe(problems, row).rpartition(" = ")  # [formula,] numbers = target
    formula, _, numbers = text.partition(" = ")
    return formula, numbers or formula


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
        token = recorded.vocabulary.names[step.token]
        told = response_text(recorded.vocabulary, step.response)
        answered = "" if told == "-" else f" ({told})"
        parts.append(f"{token}[{probability_text(step.probability, 2)}]{answered}{results}")
    if recorded.solved:
        end = "right"
    elif recorded.answer is not None:
        end = f"wrong: {recorded.answer}, not {recorded.target}"
    elif not recorded.answered:
        end = "wrong: no answer"
    else:
        known = recorded.task.defines("accumulator")
        end = "wrong: empty register" if known else f"wrong: not {recorded.target}"
    return f"{recorded.problem}: {' -> '.join(parts)}  {end}"


def verdict(recorded: Trajectory) -> str:
    """In words, why the answer is right or wrong."""
    target = f"the target is {recorded.target}"
    if not recorded.answered:
        return f"no answer in {len(recorded.steps)} actions: wrong; {target}"
    if recorded.answer is None:
        if recorded.solved:
            return f"answered: right; {target}"
        empty = " with an empty register" if recorded.task.defines("accumulator") else ""
        return f"answered{empty}: wrong; {target}"
    # Where another target is checked, a reward of 1 is paid for that one, 0.2 and less for shaping.
    paid = recorded.solved if recorded.task.rewards_target else recorded.reward >= 1
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
    network: AgentNetwork, problems: Any, batch: EpisodeBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, A) log-probabilities and (T,) values of one episode of T actions."""
    steps = int(batch.lengths[0])
    with torch.no_grad():
        encoding, hidden = network.read(
            torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
        )
        previous, observed = network.shifted(
            torch.from_numpy(batch.actions[:, :steps]), as_responses(batch.response[:, :steps])
        )
        logits, values, _ = network.unroll_observed(previous, encoding, hidden, observed)
        return torch.log_softmax(logits[0], 1), values[0]
