"""Plays the playground's problems greedily, after given tokens if there are any.

Every question carries its problem and its given tokens, and nothing is kept between two calls of
`answer`, so no visitor can see what another one asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from toolagent.checkpoints.policy import Policy
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.conversation import Source, sources
from toolagent.rollouts.play import GivenTokens, Intervention, PlayedStep, play
from toolagent.rollouts.reading import stack_rows
from toolagent.rollouts.trajectory import shown_registers
from toolagent.tasks import Task

DIGITS = 6  # of a probability or value: what float32 has


@dataclass(frozen=True)
class Question:
    """One problem, and the tokens that its program has to begin with."""

    problem: Any  # (1,) problems of the task
    given: tuple[int, ...] = ()  # no more than the episode has actions, none behind the answer
    # by step, from 0: R tokens that are observed in place of what its action is answered with
    told: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    # whether to tell where tokens were copied from, and what was done with a stack of states
    explained: bool = False


@dataclass(frozen=True)
class RecordedStep:
    """One action, the distribution that it was chosen from, and what it did."""

    token: int
    given: bool  # not chosen by the agent
    probabilities: list[float]  # of all actions, rounded to `DIGITS`, as the value is
    value: float  # the critic's, before the action
    registers: dict[str, int | str | None]  # after the action; None where empty
    reward: float
    response: tuple[int, ...] = ()  # what the agent was told of the answer to the action
    replaced: tuple[int, ...] | None = None  # the answer, if it was told another
    source: Source | None = None  # where the token was copied from, if that is asked and known


@dataclass(frozen=True)
class Answer:
    """The episode that answers a question."""

    steps: list[RecordedStep]
    answered: bool  # else it ran out of actions
    answer: int | None  # None also if it answered with an empty register, or if that is not told
    solved: bool  # the answer is exactly the target
    # a row for each token that was read (`rollouts.reading`), if that is asked and there is a stack
    reading: list[dict[str, Any]] = field(default_factory=list)


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
        together = type(problems[0]).concatenate(problems)
        batch = play(
            self.network,
            self.task,
            together,
            chooser=GivenTokens(given),
            observer=recorder,
            intervention=_Told(questions) if any(q.told for q in questions) else None,
        )
        answers = [answer for answer in recorder.answers if answer is not None]
        rows = np.flatnonzero([question.explained for question in questions])
        for row in rows:
            tokens = [step.token for step in answers[row].steps]
            reading = stack_rows(self.network, self.task, problems[row], tokens)
            answers[row] = replace(answers[row], reading=reading)
        if self.task.response_length and len(rows):
            steps = int(batch.lengths[rows].max())
            columns = batch.actions[rows, :steps], batch.lengths[rows], batch.response[rows, :steps]
            found = sources(self.network, self.task, together.take(rows), *columns)
            for row, of_steps in zip(rows, found, strict=True):
                told = zip(answers[row].steps, of_steps, strict=True)
                answers[row] = replace(
                    answers[row], steps=[replace(step, source=source) for step, source in told]
                )
        return answers


class _Told(Intervention):
    """The agents observe what their questions say in place of answers."""

    def __init__(self, questions: Sequence[Question]):
        self._told = [question.told for question in questions]

    def response(self, response: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        """(n, R) what is observed (see `rollouts.play.Intervention`)."""
        told = response.clone()
        for place, row in enumerate(rows.tolist()):
            if (tokens := self._told[row].get(step - 1)) is not None:
                told[place] = torch.tensor(tokens, dtype=response.dtype)
        return told


class _Recorder:
    """Keeps every step of every question's episode, as plain values."""

    def __init__(self, questions: Sequence[Question]):
        self._given = [len(question.given) for question in questions]
        self._told = [question.told for question in questions]
        self._steps: list[list[RecordedStep]] = [[] for _ in questions]
        self.answers: list[Answer | None] = [None] * len(questions)

    def observe(self, step: PlayedStep) -> None:
        """Notes one step (see `rollouts.play.Observer`)."""
        # Rounded and converted for the whole batch at once: many numbers for each step.
        probabilities = torch.softmax(step.logits, 1).double().numpy().round(DIGITS).tolist()
        values = step.values.double().numpy().round(DIGITS).tolist()
        transition, (answers, answered) = step.transition, step.answers()
        answer = step.task.response_of(transition)
        responses = [()] * len(values) if answer is None else answer.tolist()
        pad = step.task.vocabulary.pad_token
        for place, row in enumerate(step.rows.tolist()):
            response, told = tuple(responses[place]), self._told[row].get(step.number)
            if told is not None and all(token == pad for token in response):
                told = None  # only what was answered can be replaced
            self._steps[row].append(
                RecordedStep(
                    token=int(step.actions[place]),
                    given=step.number < self._given[row],
                    probabilities=probabilities[place],
                    value=values[place],
                    registers=shown_registers(step.task, transition.registers, place),
                    reward=float(transition.rewards[place]),
                    response=response if told is None else told,
                    replaced=None if told is None else response,
                )
            )
            if transition.done[place]:
                self.answers[row] = Answer(
                    steps=self._steps[row],
                    answered=bool(transition.terminated[place]),
                    answer=int(answers[place]) if answered[place] else None,
                    solved=bool(transition.solved[place]),
                )
