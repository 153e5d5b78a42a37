"""Tries a task out: whether what its methods return has the right shapes and values."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.errors import UserError
from toolagent.outside import file_of
from toolagent.tasks.base import Problems, Registers, Task, Transition

_TRIED = 3  # episodes a stage


def check_task(task: Task) -> None:
    """Plays a few steps of each stage with random actions.

    Raises:
        UserError: what a method returns is not what `Task` says; the message names the file and
            the method.
    """
    where = f"{file_of(type(task))}: task {type(task).__name__}"
    rng = np.random.default_rng(0)
    for stage in task.stages:
        stages = np.full(_TRIED, stage, np.int8)
        problems = _called(where, task.sample, rng, stages)
        _check_problems(where, task, problems, stages)
        for split in task.splits_of(stage):
            drawn = _called(where, task.sample, rng, stages, split)
            _check_problems(where, task, drawn, stages)
        target = _called(where, task.target, problems)
        _check_column(where, "target", target, (_TRIED,), "iu")
        registers = _called(where, task.start, problems)
        _require(isinstance(registers, Registers), where, "start returns no Registers")
        _require(
            len(registers) == _TRIED, where, f"start returns no registers of {_TRIED} episodes"
        )
        for _ in range(task.max_actions):
            actions = rng.integers(0, task.vocabulary.num_actions, len(problems))
            transition = _called(where, task.step, problems, registers, actions)
            _check_transition(where, task, transition, len(problems))
            going = ~transition.done
            if not going.any():
                break
            problems, registers = problems.take(going), transition.registers.take(going)
        else:
            _require(
                bool(transition.done.all()),
                where,
                f"an episode is not over after max_actions, {task.max_actions}; step must set "
                "`truncated` then",
            )


def _check_problems(where: str, task: Task, problems: Any, stages: np.ndarray) -> None:
    _require(isinstance(problems, Problems), where, "sample returns no Problems")
    _check_column(where, "stage", problems.stage, stages.shape, "iu")
    _require((problems.stage == stages).all(), where, "sample returns problems of other stages")
    shape = (len(stages), task.context_length)
    _check_column(where, "context", problems.context, shape, "iu")
    known = len(task.vocabulary)
    _require(
        bool(((problems.context >= 0) & (problems.context < known)).all()),
        where,
        f"a context has a token outside 0..{known - 1}",
    )


def _check_transition(where: str, task: Task, transition: Any, size: int) -> None:
    _require(isinstance(transition, Transition), where, "step returns no Transition")
    _require(len(transition.registers) == size, where, f"step returns no registers of {size}")
    _check_column(where, "rewards", transition.rewards, (size,), "fiub")
    for name in ("terminated", "truncated", "solved"):
        _check_column(where, name, getattr(transition, name), (size,), "b")
    width = task.response_length
    if transition.response is None:
        _require(not width, where, f"step returns no response; response_length is {width}")
        return
    response = np.asarray(transition.response)
    _check_column(where, "response", response, (size, width), "iu")
    known = len(task.vocabulary)
    _require(
        bool(((response >= 0) & (response < known)).all()),
        where,
        f"a response has a token outside 0..{known - 1}",
    )


def _check_column(where: str, name: str, column: Any, shape: tuple[int, ...], kinds: str) -> None:
    array = np.asarray(column)
    _require(
        array.shape == shape and array.dtype.kind in kinds,
        where,
        f"{name} is {array.dtype} of shape {array.shape}; "
        f"expected {_KINDS[kinds]} of shape {shape}",
    )


_KINDS = {"iu": "integers", "b": "bool", "fiub": "numbers"}


def _called(where: str, method: Any, *arguments: Any) -> Any:
    try:
        return method(*arguments)
    except Exception as error:  # whatever the task's own code raises
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: {method.__name__} raised {type(error).__name__}: {text}"
        ) from error


def _require(holds: bool, where: str, fault: str) -> None:
    if not holds:
        raise UserError(f"{where}: {fault}")
