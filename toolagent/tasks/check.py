"""Tries a task out: whether what its methods return has the right shapes and values."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from toolagent.errors import UserError
from toolagent.outside import called, file_of, require
from toolagent.tasks.base import Problems, Registers, Task, Transition

_TRIED = 3  # episodes a stage


def check_task(task: Task) -> None:
    """Plays a few steps of each stage with random actions, and asks for what is shown of them.

    What a run needs only at its end, such as `problems`, is tried too: it would be lost there.

    Raises:
        UserError: what a method returns is not what `Task` says; the message names the file and
            the method.
    """
    where = f"{file_of(type(task))}: task {type(task).__name__}"
    vocabulary, rng = task.vocabulary, np.random.default_rng(0)
    for stage in task.stages:
        stages = np.full(_TRIED, stage, np.int8)
        problems = called(where, task.sample, rng, stages)
        _check_problems(where, "sample", task, problems, stages)
        _check_shown(where, task, problems, stage)
        rewritten = called(where, task.rewritten, problems, rng)
        _check_problems(where, "rewritten", task, rewritten, stages)
        siblings = called(where, task.siblings, problems, rng)
        _check_problems(where, "siblings", task, siblings, stages)
        require(
            np.array_equal(siblings.context, problems.context),
            where,
            "siblings returns problems with other contexts",
        )
        registers = called(where, task.start, problems)
        _check_registers(where, "start", registers, _TRIED)
        for _ in range(task.max_actions):
            actions = rng.integers(0, vocabulary.num_actions, len(problems))
            if actions[0] == vocabulary.answer_token:  # one episode that does not answer
                actions[0] = (actions[0] + 1) % vocabulary.num_actions
            before = copy.deepcopy((problems, registers))
            transition = called(where, task.step, problems, registers, actions)
            _check_transition(where, task, transition, len(problems))
            unchanged = zip(before, (problems, registers), strict=True)
            require(
                all(_equal(old, now) for old, now in unchanged),
                where,
                "step changes the problems or registers that it is given; it must return new ones",
            )
            _check_status(where, task, transition.registers)
            going = ~transition.done
            if not going.any():
                break
            problems, registers = problems.take(going), transition.registers.take(going)
        else:
            require(
                bool(transition.done.all()),
                where,
                f"an episode is not over after max_actions, {task.max_actions}; step must set "
                "`truncated` then",
            )


def _check_problems(where: str, method: str, task: Task, problems: Any, stages: np.ndarray) -> None:
    """`method` returned problems of these stages, and their targets can be told."""
    size, known = len(stages), len(task.vocabulary)
    require(isinstance(problems, Problems), where, f"{method} returns no Problems")
    _check_lengths(where, method, problems, size)
    _check_column(where, "stage", problems.stage, (size,), "iu")
    require((problems.stage == stages).all(), where, f"{method} returns problems of other stages")
    _check_column(where, "context", problems.context, (size, task.context_length), "iu")
    require(
        bool(((problems.context >= 0) & (problems.context < known)).all()),
        where,
        f"a context has a token outside 0..{known - 1}",
    )
    _check_column(where, "target", called(where, task.target, problems), (size,), "iu")


def _check_shown(where: str, task: Task, problems: Any, stage: int) -> None:
    """What certifying, recording and displays ask of the problems."""
    require(isinstance(called(where, task.formula, stage), str), where, "formula is no text")
    text = called(where, task.describe, problems, 0)
    require(isinstance(text, str), where, "describe returns no text")
    read = called(where, task.read, problems.context)
    require(isinstance(read, dict), where, "read returns no dict")
    total = called(where, task.num_problems, stage)
    if total is None:
        return
    require(
        isinstance(total, (int, np.integer)) and bool(total > 0),
        where,
        f"num_problems returns {total!r}; expected a number above 0, or None",
    )
    last = max(0, total - _TRIED)
    listed = called(where, task.problems, stage, last, int(total))
    _check_problems(where, "problems", task, listed, np.full(total - last, stage, np.int8))


def _check_status(where: str, task: Task, registers: Any) -> None:
    """What exploration and displays ask of registers."""
    size, most = len(registers), task.num_statuses
    status = called(where, task.status, registers)
    _check_column(where, "status", status, (size,), "iu")
    require(
        bool(((status >= 0) & (status < most)).all()),
        where,
        f"status is not below num_statuses, {most}",
    )
    told = called(where, task.accumulator, registers)
    require(isinstance(told, tuple) and len(told) == 2, where, "accumulator returns no two arrays")
    for column, kinds in zip(told, ("iu", "b"), strict=True):
        _check_column(where, "accumulator", column, (size,), kinds)
    require(isinstance(called(where, task.show, registers, 0), dict), where, "show is no dict")


def _check_registers(where: str, method: str, registers: Any, size: int) -> None:
    require(isinstance(registers, Registers), where, f"{method} returns no Registers")
    _check_lengths(where, method, registers, size)


def _check_lengths(where: str, method: str, columns: Any, size: int) -> None:
    """Every column is an array with one entry for each episode."""
    for name, column in columns.columns():
        require(
            isinstance(column, np.ndarray) and column.shape[:1] == (size,),
            where,
            f"{method} returns no array of {size} rows as {name}",
        )


def _equal(before: Any, now: Any) -> bool:
    pairs = zip(before.columns(), now.columns(), strict=True)
    return all(np.array_equal(old, column) for (_, old), (_, column) in pairs)


def _check_transition(where: str, task: Task, transition: Any, size: int) -> None:
    require(isinstance(transition, Transition), where, "step returns no Transition")
    _check_registers(where, "step", transition.registers, size)
    _check_column(where, "rewards", transition.rewards, (size,), "fiub")
    for name in ("terminated", "truncated", "solved"):
        _check_column(where, name, getattr(transition, name), (size,), "b")
    width = task.response_length
    if transition.response is None:
        require(not width, where, f"step returns no response; response_length is {width}")
        return
    response = transition.response
    _check_column(where, "response", response, (size, width), "iu")
    known = len(task.vocabulary)
    require(
        bool(((response >= 0) & (response < known)).all()),
        where,
        f"a response has a token outside 0..{known - 1}",
    )


def _check_column(where: str, name: str, column: Any, shape: tuple[int, ...], kinds: str) -> None:
    found = f"a {type(column).__name__}"
    if isinstance(column, np.ndarray):
        if column.shape == shape and column.dtype.kind in kinds:
            return
        found = f"{column.dtype} of shape {column.shape}"
    raise UserError(
        f"{where}: {name} is {found}; expected an array of {_KINDS[kinds]} of shape {shape}"
    )


_KINDS = {"iu": "integers", "b": "bool", "fiub": "numbers"}
