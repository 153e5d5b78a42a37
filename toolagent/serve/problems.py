"""Turns a request into a question, or refuses it with the reason."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from toolagent.serve.player import Question
from toolagent.serve.schemas import Example, Problem
from toolagent.tasks import Task


class Refused(ValueError):
    """A request that can't be answered; the message says what would be right."""


def question_of(task: Task, asked: Problem) -> Question:
    """The question that a request asks.

    Raises:
        Refused: there is no such problem, or no program begins with the given tokens.
    """
    problem = _problem(task, asked)
    vocabulary = task.vocabulary
    unknown = [name for name in asked.given if name not in vocabulary.actions]
    if unknown:
        raise Refused(
            f"given: no token {unknown[0]!a:.60}; there is {' '.join(vocabulary.actions)}"
        )
    given = tuple(map(vocabulary.token, asked.given))
    limit = int(task.action_limit(problem.stage)[0])
    if len(given) > limit:
        raise Refused(f"given: {len(given)} tokens; an episode of this problem has {limit} at most")
    if vocabulary.answer in asked.given[:-1]:
        behind = asked.given[asked.given.index(vocabulary.answer) + 1 :]
        raise Refused(
            f"given: '{' '.join(behind)}' comes after {vocabulary.answer}, which ends the episode"
        )
    return Question(problem, given)


def example_of(task: Task, stage: int | None, rng: np.random.Generator) -> Example:
    """A random problem of the stage, or of any.

    Raises:
        Refused: there is no such stage.
    """
    if stage is not None:
        _check_stage(task, stage)
    drawn = rng.choice(task.stages) if stage is None else stage
    problem = task.sample(rng, np.array([drawn], np.int8))
    posed: Any = task.read(problem.context)[task.posed_by][0]
    if task.problem_tells_stage:
        return Example(stage=int(drawn), expression=str(posed))
    shown = len(task.shown_columns(int(drawn)))
    return Example(stage=int(drawn), digits=posed[:shown].tolist())


def _problem(task: Task, asked: Problem) -> Any:
    for key in ("digits", "expression"):
        if key != task.posed_by and getattr(asked, key) is not None:
            raise Refused(f"{key}: task '{task.name}' is posed by '{task.posed_by}'")
    posed = getattr(asked, task.posed_by)
    if posed is None:
        raise Refused(f"'{task.posed_by}' is missing: task '{task.name}' is posed by it")
    if asked.stage is not None:
        _check_stage(task, asked.stage)
    stage = asked.stage
    if not task.problem_tells_stage:
        stage, posed = _all_digits(task, stage, posed)
    try:
        return task.pose(None if stage is None else np.array([stage]), **{task.posed_by: [posed]})
    except ValueError as error:
        raise Refused(f"{task.posed_by}: {error}") from None


def _all_digits(task: Task, stage: int | None, digits: list[int]) -> tuple[int, list[int]]:
    """The stage, and a digit for every column: 0 for those that it does not show."""
    shown, every = _shown(type(task)), len(task.problem_columns)
    stages = [number for number, count in shown.items() if count == len(digits)]
    if stage is None:
        if not stages:
            counts = ", ".join(f"{count} (stage {number})" for number, count in shown.items())
            raise Refused(f"digits: there are {len(digits)}; expected {counts}")
        stage = stages[0]
    elif len(digits) not in (shown[stage], every):
        also = f" (or all {every})" if shown[stage] != every else ""
        raise Refused(
            f"digits: there are {len(digits)}; stage {stage}, {task.formula(stage)}, "
            f"shows {shown[stage]}{also}"
        )
    return stage, [*digits, *[0] * (every - len(digits))]


@functools.cache
def _shown(task: type[Task]) -> dict[int, int]:
    """How many digits each stage shows."""
    return {stage: len(task().shown_columns(stage)) for stage in task().stages}


def _check_stage(task: Task, stage: int) -> None:
    if stage not in task.stages:
        raise Refused(
            f"stage: task '{task.name}' has no stage {stage}; "
            f"its stages are {task.stages[0]}..{task.stages[-1]}"
        )
