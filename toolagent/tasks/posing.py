"""One problem of a task from what somebody gave."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from toolagent.tasks.base import Task
from toolagent.tasks.fields import Field


class PosingError(ValueError):
    """What can't be posed; `names` are the fields that it is about."""

    def __init__(self, names: tuple[str, ...], message: object):
        super().__init__(str(message))
        self.names = names


def pose_one(task: Task, stage: int | None, given: Mapping[str, Any]) -> Any:
    """One problem.

    Args:
        task: the task.
        stage: of the problem. None: what the problem tells; else the last stage, or the last that
            shows as many numbers as are given.
        given: by the name of a field a text, a number or a list of them. Numbers that the stage
            does not show may be left out, and fields that the task can do without.

    Returns:
        (1,) problems of the task.

    Raises:
        PosingError: there is no such problem.
        ValueError: there is no such stage.
    """
    if stage is not None:
        task.check_stage(stage)
    given = dict(given)
    for field in task.fields:
        value = given.get(field.name)
        if not field.is_list or not isinstance(value, (list, tuple)):
            continue
        try:
            if len(field.columns) > 1:
                stage, given[field.name] = _all_numbers(task, field, stage, [*value])
            else:
                field.check_length(value)
        except ValueError as error:
            raise PosingError((field.name,), error) from None
    if stage is None and not task.problem_tells_stage:
        stage = task.stages[-1]
    stages = None if stage is None else np.array([stage])
    try:
        return task.pose(stages, **{name: [value] for name, value in given.items()})
    except (ValueError, TypeError) as error:
        raise PosingError(tuple(given), error) from error


def _all_numbers(
    task: Task, field: Field, stage: int | None, numbers: list[Any]
) -> tuple[int, list[Any]]:
    """The stage, and a number for every column: 0 for those that it does not show."""
    shown, every = _shown(type(task)), len(field.columns)
    if stage is None:
        stages = [number for number, count in shown.items() if count == len(numbers)]
        if not stages:
            counts = ", ".join(f"{count} (stage {number})" for number, count in shown.items())
            raise ValueError(f"{len(numbers)} numbers; expected {counts}")
        stage = stages[-1]
    elif len(numbers) not in (shown[stage], every):
        also = f" (or give all {every})" if shown[stage] != every else ""
        asked = ", ".join(filter(None, (f"stage {stage}", task.formula(stage))))
        raise ValueError(f"{len(numbers)} numbers; {asked}, shows {shown[stage]}{also}")
    return stage, [*numbers, *[0] * (every - len(numbers))]


@functools.cache
def _shown(task: type[Task]) -> dict[int, int]:
    """How many columns each stage shows."""
    return {stage: len(task().shown_columns(stage)) for stage in task().stages}
