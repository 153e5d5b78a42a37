"""Plays problems for the playground: greedily behind tokens that may be given.

Every question carries its whole problem and its given tokens, and nothing is kept between two
calls of `answer`, so no visitor can see what another one asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolagent.checkpoints.policy import Policy
from toolagent.models.base import AgentNetwork
from toolagent.tasks import Task
from toolagent.tasks.columns import Columns
from toolagent.vocabulary import CTX

GREEDY = -1  # in a column of given tokens: the agent chooses
DIGITS = 6  # of a probability or value: what float32 has


@dataclass(frozen=True)
class Question:
    """One problem, and the tokens that its program has to begin with."""

    problem: Any  # (1,) problems of the task
    given: tuple[int, ...] = ()  # at most as many as the episode has actions, none behind `ANS`


@dataclass(frozen=True)
class PlayedStep:
    """One action, the distribution that it was chosen from, and what it did."""

    token: int
    given: bool  # not chosen by the agent
    probabilities: list[float]  # 18, rounded to `DIGITS`, as the value is
    value: float  # the critic's, before the action
    registers: dict[str, int | str | None]  # after the action; None where empty
    reward: float


@dataclass(frozen=True)
class Answer:
    """The episode that a question led to."""

    steps: list[PlayedStep]
    answered: bool  # with ANS; else it ran out of actions
    answer: int | None  # None also if it answered with an empty register
    solved: bool  # the answer is exactly the target


class Player:
    """One checkpoint's agent, playing many problems at once.

    Args:
        policy: its network is on the CPU; its weights must not change any more.
    """

    def __init__(self, policy: Policy):
        self.task: Task = policy.task
        self.network: AgentNetwork = policy.network
        self._table = policy.network.step_table()

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Plays B questions as one batch, in the order in which they came.

        The rollout is that of `rollouts.play.play`: same `step` of the network, same machine, the
        most probable token. A test holds the two together on every problem of a stage.
        """
        task, size = self.task, len(questions)
        problems = joined([question.problem for question in questions])
        given = np.full((size, task.max_actions), GREEDY)
        for row, question in enumerate(questions):
            given[row, : len(question.given)] = question.given
        recorded: list[list[PlayedStep]] = [[] for _ in questions]
        answers: list[Answer | None] = [None] * size

        registers, live = task.start(problems), np.arange(size)
        encoding, hidden = self.network.begin(
            torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
        )
        token = torch.full((size,), CTX)
        for step in range(task.max_actions):
            logits, value, hidden = self.network.step(self._table, token, encoding, hidden)
            forced = torch.from_numpy(given[live, step])
            token = torch.where(forced == GREEDY, logits.argmax(1), forced)
            actions = token.numpy()
            # Rounded and made Python's for the whole batch: 19 numbers a step are not few.
            probabilities = torch.softmax(logits, 1).double().numpy().round(DIGITS).tolist()
            values = value.double().numpy().round(DIGITS).tolist()
            transition = task.step(problems, registers, actions)
            registers = transition.registers
            accumulator, filled = task.accumulator(registers)
            for place, row in enumerate(live.tolist()):
                recorded[row].append(
                    PlayedStep(
                        token=int(actions[place]),
                        given=step < len(questions[row].given),
                        probabilities=probabilities[place],
                        value=values[place],
                        registers=task.show(registers, place),
                        reward=float(transition.rewards[place]),
                    )
                )
                if transition.done[place]:
                    answered = bool(transition.terminated[place])
                    answers[row] = Answer(
                        steps=recorded[row],
                        answered=answered,
                        answer=int(accumulator[place]) if answered and filled[place] else None,
                        solved=bool(transition.solved[place]),
                    )
            going = np.flatnonzero(~transition.done)
            if not len(going):
                break
            if len(going) < len(live):
                live, registers, problems = live[going], registers.take(going), problems.take(going)
                kept = torch.from_numpy(going)
                token, hidden = token[kept], hidden[kept]
                encoding = tuple(part[kept] for part in encoding)
        return [answer for answer in answers if answer is not None]


def joined(problems: Sequence[Columns]) -> Any:
    """One batch of several."""
    first = problems[0]
    if len(problems) == 1:
        return first
    return type(first)(
        **{name: np.concatenate([getattr(part, name) for part in problems]) for name in vars(first)}
    )
