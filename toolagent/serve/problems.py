"""Turns a request into a question, or refuses it with the reason."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolagent.rollouts.conversation import turns
from toolagent.serve.player import Answer, Question
from toolagent.serve.schemas import SEED, PosedBy
from toolagent.tasks import Task
from toolagent.tasks.fields import NUMBER
from toolagent.tasks.posing import PosingError, pose_one

_SEEDS = 1_000_000  # of drawn problems: short enough to be typed


class Refused(ValueError):
    """A request that can't be answered; the message says what would be right."""


def question_of(task: Task, asked: Any) -> Question:
    """The question that a request asks.

    Args:
        task: the server's.
        asked: a `Requests.problem` of it.

    Raises:
        Refused: there is no such problem, no program begins with the given tokens, or the agent
            can't be told such an answer.
    """
    problem = _problem(task, asked)
    vocabulary = task.vocabulary
    given = tuple(map(vocabulary.token, asked.given))
    limit = int(task.action_limit(problem.stage)[0])
    if len(given) > limit:
        raise Refused(f"given: {len(given)} tokens; an episode of this problem has {limit} at most")
    registers = task.start(problem)
    for place, token in enumerate(given[:-1]):
        transition = task.step(problem, registers, np.array([token]))
        registers = transition.registers
        if transition.done[0]:
            raise Refused(
                f"given: '{' '.join(asked.given[place + 1 :])}' comes after "
                f"{asked.given[place]} (token {place + 1}), which ends the episode"
            )
    return Question(problem, given, _told(task, asked))


def _told(task: Task, asked: Any) -> dict[int, tuple[int, ...]]:
    """What the agent is told in place of answers, by step from 0; padded."""
    told: dict[int, tuple[int, ...]] = {}
    for answer in getattr(asked, "answers", ()):
        where, count = f"answers: step {answer.step}", len(answer.tokens)
        if count > task.response_length:
            raise Refused(f"{where}: {count} tokens; an answer has {task.response_length} at most")
        if answer.step - 1 in told:
            raise Refused(f"{where} is there twice")
        tokens = [*map(task.vocabulary.token, answer.tokens)]
        padding = [task.vocabulary.pad_token] * (task.response_length - count)
        told[answer.step - 1] = (*tokens, *padding)
    return told


def check_told(task: Task, question: Question, answer: Answer) -> None:
    """Raises Refused if the agent was to be told of an answer that there was none of."""
    steps, names = answer.steps, task.vocabulary.names
    for step in question.told:
        where = f"answers: step {step + 1}"
        if step >= len(steps) - 1:
            raise Refused(
                f"{where}: the episode has {len(steps)} steps, and nothing comes after it"
            )
        if steps[step].replaced is None:
            numbers = [
                str(turn.last + 1)
                for turn in turns(task, [s.response for s in steps])
                if turn.number is not None
            ]
            there = f"answered are steps {', '.join(numbers)}" if numbers else "no step is answered"
            raise Refused(f"{where}, {names[steps[step].token]}, is not answered; {there}")


def keys_of(task: Task) -> tuple[str, ...]:
    """The keys that a problem of the task may be asked by: what poses it, the main one first.

    Where a drawn problem can't be said in the words that pose it, its `seed` is sent back.
    """
    return _keys(type(task))


@functools.cache  # every request asks for it
def _keys(kind: type[Task]) -> tuple[str, ...]:
    task = kind()
    posed = task.posed_by if task.can_be_posed else ()
    told = bool(posed) and set(posed) <= task.posing(task.example()).keys()
    return posed if told else (*posed, SEED)


def main_fields(task: Task) -> list[PosedBy]:
    """What the page asks for: what poses a problem, or its `seed` where it can only be drawn."""
    if not task.can_be_posed:
        return [PosedBy(name=SEED, kind=NUMBER, length=None)]
    return [PosedBy(name=field.name, kind=field.kind, length=field.length) for field in task.fields]


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


def first_example(task: Task, trained: Sequence[int] | None = None) -> dict[str, Any]:
    """The task's own example, as it can be asked.

    Args:
        task: the server's.
        trained: the stages that the agent trained on, where that is known. If the example is of
            another one, the last of them has one too.
    """
    stage = int(task.example().stage[0])
    if trained and stage not in trained:
        stage = trained[-1]
    if SEED in keys_of(task):
        return {"stage": stage, SEED: 0}
    own = task.example()
    return asked_as(task, own if stage == own.stage[0] else task.example(stage))


def asked_as(task: Task, problem: Any) -> dict[str, Any]:
    """The request for one problem, in plain values."""
    stage = int(problem.stage[0])
    told, asked = task.posing(problem), {"stage": stage}
    for field in task.fields:
        value: Any = told[field.name][0]
        value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        if len(field.columns) > 1:
            value = value[: len(task.shown_columns(stage))]
        asked[field.name] = value
    return asked


def _problem(task: Task, asked: Any) -> Any:
    given = {key: getattr(asked, key) for key in keys_of(task)}
    given = {key: value for key, value in given.items() if value is not None}
    first, seed = keys_of(task)[0], given.pop(SEED, None)
    if seed is None and first not in given:
        keys = first if SEED not in keys_of(task) or first == SEED else f"{first}' or '{SEED}"
        raise Refused(f"'{keys}' is missing: task '{task.name}' is posed by it")
    if seed is not None and given:
        raise Refused(f"'{next(iter(given))}' or '{SEED}' can't be given together")
    stage = asked.stage
    if stage is not None:
        _check_stage(task, stage)
    if seed is not None:
        stage = task.stages[-1] if stage is None else stage
        return task.sample(np.random.default_rng(seed), np.array([stage], np.int8))
    try:
        return pose_one(task, stage, given)
    except PosingError as error:
        raise Refused(f"{' and '.join(error.names)}: {error}") from None


def _check_stage(task: Task, stage: int) -> None:
    if stage not in task.stages:
        raise Refused(
            f"stage: task '{task.name}' has no stage {stage}; "
            f"its stages are {task.stages[0]}..{task.stages[-1]}"
        )
