"""Turns a request into a question, or refuses it with the reason."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from toolagent.serve.player import Question
from toolagent.serve.schemas import SEED
from toolagent.tasks import Task

_SEEDS = 1_000_000  # of drawn problems: short enough to be typed


class Refused(ValueError):
    """A request that can't be answered; the message says what would be right."""


def question_of(task: Task, asked: Any) -> Question:
    """The question that a request asks.

    Args:
        task: the server's.
        asked: a `Requests.problem` of it.

    Raises:
        Refused: there is no such problem, or no program begins with the given tokens.
    """
    problem = _problem(task, asked)
    vocabulary = task.vocabulary
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


def keys_of(task: Task) -> tuple[str, ...]:
    """The keys that a problem of the task may be asked by, the main one first.

    Where a drawn problem can't be said in the words that pose it, its `seed` is sent back.
    """
    return _keys(type(task))


@functools.cache  # every request asks for it
def _keys(kind: type[Task]) -> tuple[str, ...]:
    task = kind()
    posed = (task.posed_by,) if task.can_be_posed else ()
    told = task.can_be_posed and task.posed_by in task.read(task.example().context)
    return posed if told else (*posed, SEED)


def example_of(task: Task, stage: int | None, rng: np.random.Generator) -> dict[str, Any]:
    """A random problem of the stage, or of any, as it can be asked.

    Raises:
        Refused: there is no such stage.
    """
    if stage is not None:
        _check_stage(task, stage)
    drawn = int(rng.choice(task.stages)) if stage is None else stage
    if SEED in keys_of(task):
        return {"stage": drawn, SEED: int(rng.integers(_SEEDS))}
    return asked_as(task, task.sample(rng, np.array([drawn], np.int8)))


def first_example(task: Task) -> dict[str, Any]:
    """The task's own example, as it can be asked."""
    if SEED in keys_of(task):
        return {"stage": task.stages[-1], SEED: 0}
    return asked_as(task, task.example())


def asked_as(task: Task, problem: Any) -> dict[str, Any]:
    """The request for one problem, in plain values."""
    stage = int(problem.stage[0])
    posed: Any = task.read(problem.context)[task.posed_by][0]
    posed = posed.tolist() if isinstance(posed, (np.ndarray, np.generic)) else posed
    if len(task.problem_columns) > 1:
        posed = posed[: len(task.shown_columns(stage))]
    return {"stage": stage, task.posed_by: posed}


def _problem(task: Task, asked: Any) -> Any:
    given = {key: getattr(asked, key) for key in keys_of(task)}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) != 1:
        keys = "' or '".join(keys_of(task))
        fault = "can't be given together" if given else f"is missing: task '{task.name}' is posed"
        raise Refused(f"'{keys}' {fault}" + ("" if given else " by it"))
    ((key, posed),) = given.items()
    stage = asked.stage
    if stage is not None:
        _check_stage(task, stage)
    if key == SEED:
        stage = task.stages[-1] if stage is None else stage
        return task.sample(np.random.default_rng(posed), np.array([stage], np.int8))
    if len(task.problem_columns) > 1:
        stage, posed = _all_numbers(task, stage, posed)
    elif not task.problem_tells_stage:
        stage = task.stages[-1] if stage is None else stage
    try:
        return task.pose(None if stage is None else np.array([stage]), **{key: [posed]})
    except ValueError as error:
        raise Refused(f"{key}: {error}") from None


def _all_numbers(task: Task, stage: int | None, numbers: list[int]) -> tuple[int, list[int]]:
    """The stage, and a number for every column: 0 for those that it does not show."""
    shown, every = _shown(type(task)), len(task.problem_columns)
    stages = [number for number, count in shown.items() if count == len(numbers)]
    if stage is None:
        if not stages:
            counts = ", ".join(f"{count} (stage {number})" for number, count in shown.items())
            raise Refused(f"{task.posed_by}: there are {len(numbers)}; expected {counts}")
        stage = stages[-1]
    elif len(numbers) not in (shown[stage], every):
        also = f" (or all {every})" if shown[stage] != every else ""
        asked = ", ".join(filter(None, (f"stage {stage}", task.formula(stage))))
        raise Refused(
            f"{task.posed_by}: there are {len(numbers)}; {asked}, shows {shown[stage]}{also}"
        )
    return stage, [*numbers, *[0] * (every - len(numbers))]


@functools.cache
def _shown(task: type[Task]) -> dict[int, int]:
    """How many columns each stage shows."""
    return {stage: len(task().shown_columns(stage)) for stage in task().stages}


def _check_stage(task: Task, stage: int) -> None:
    if stage not in task.stages:
        raise Refused(
            f"stage: task '{task.name}' has no stage {stage}; "
            f"its stages are {task.stages[0]}..{task.stages[-1]}"
        )
