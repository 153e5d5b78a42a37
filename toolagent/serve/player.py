"""Plays the playground's problems greedily, after given tokens if there are any.

Every question carries its problem and its given tokens, and nothing is kept between two calls of
`answer`, so no visitor can see what another one asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolagent.checkpoints.policy import Policy
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.play import GivenTokens, PlayedStep, play
from toolagent.rollouts.trajectory import shown_registers
from toolagent.tasks import Task

DIGITS = 6  # of a probability or value: what float32 has


@dataclass(frozen=True)
class Question:
    """One problem, and the tokens that its program has to begin with."""

    problem: Any  # (1,) problems of the task
    given: tuple[int, ...] = ()  # no more than the episode has actions, none behind the answer


@dataclass(frozen=True)
class RecordedStep:
    """One action, the distribution that it was chosen from, and what it did."""

    token: int
    given: bool  # not chosen by the agent
    probabilities: list[float]  # of all actions, rounded to `DIGITS`, as the value is
    value: float  # the critic's, before the action
    registers: dict[str, int | str | None]  # after the action; None where empty
    reward: float
    response: tuple[int, ...] = ()  # the tokens that the action was answered with


@dataclass(frozen=True)
class Answer:
    """The episode that answers a question."""

    steps: list[RecordedStep]
    answered: bool  # else it ran out of actions
    answer: int | None  # None also if it answered with an empty register, or if that is not told
    solved: bool  # the answer is exactly the target


class Player:
    """One checkpoint's agent, playing many problems at once.

    Args:
        policy: its network is on the CPU.
    """

    def __init__(self, policy: Policy):
        self.task: Task = policy.task
        self.network: AgentNetwork = policy.network

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Plays B questions as one batch; answers are in the same order."""
        problems = [question.problem for question in questions]
        given = np.full((len(questions), self.task.max_actions), GivenTokens.FREE)
        for row, question in enumerate(questions):
            given[row, : len(question.given)] = question.given
        recorder = _Recorder(questions)
        play(
            self.network,
            self.task,
            type(problems[0]).concatenate(problems),
            chooser=GivenTokens(given),
            observer=recorder,
        )
        return [answer for answer in recorder.answers if answer is not None]


class _Recorder:
    """Keeps every step of every question's episode, as plain values."""

    def __init__(self, questions: Sequence[Question]):
        self._given = [len(question.given) for question in questions]
        self._steps: list[list[RecordedStep]] = [[] for _ in questions]
        self.answers: list[Answer | None] = [None] * len(questions)

    def observe(self, step: PlayedStep) -> None:
        """Notes one step (see `rollouts.play.Observer`)."""
        # Rounded and converted for the whole batch at once: many numbers for each step.
        probabilities = torch.softmax(step.logits, 1).double().numpy().round(DIGITS).tolist()
        values = step.values.double().numpy().round(DIGITS).tolist()
        transition, (answers, answered) = step.transition, step.answers()
        told = step.task.response_of(transition)
        responses = [()] * len(values) if told is None else told.tolist()
        for place, row in enumerate(step.rows.tolist()):
            self._steps[row].append(
                RecordedStep(
                    token=int(step.actions[place]),
                    given=step.number < self._given[row],
                    probabilities=probabilities[place],
                    value=values[place],
                    registers=shown_registers(step.task, transition.registers, place),
                    reward=float(transition.rewards[place]),
                    response=tuple(responses[place]),
                )
            )
            if transition.done[place]:
                self.answers[row] = Answer(
                    steps=self._steps[row],
                    answered=bool(transition.terminated[place]),
                    answer=int(answers[place]) if answered[place] else None,
                    solved=bool(transition.solved[place]),
                )
