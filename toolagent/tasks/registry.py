"""The tasks that are known by name, and those of other modules."""

from __future__ import annotations

import inspect
import re

from toolagent.errors import UserError, nearest
from toolagent.outside import file_of, is_outside, load_class, reference_of
from toolagent.tasks.base import Task
from toolagent.tasks.fields import check_posed_by
from toolagent.vocabulary import Vocabulary

# Every task in use, by its reference: the name of one of this package's own, 'module:Class' of
# another.
TASKS: dict[str, type[Task]] = {}

_OWN = __name__.rpartition(".")[0]
_NEEDED = {"name": str, "vocabulary": Vocabulary} | dict.fromkeys(
    ("num_stages", "context_length", "max_actions"), int
)
_MOST = 127  # lengths and stages are kept as int8


def reference_of_task(task: type[Task] | Task) -> str:
    """What configurations and checkpoints call the task: 'calculator', 'my_module:MyTask'."""
    given = task if isinstance(task, type) else type(task)
    own = given.__module__.startswith(f"{_OWN}.")
    return given.name if own else reference_of(given)


def register_task(given: type[Task]) -> type[Task]:
    """Makes a task known by its name; the same again does no harm.

    Raises:
        UserError: it is no task, lacks a member, or another task has its name.
    """
    if not (isinstance(given, type) and issubclass(given, Task)):
        raise UserError(f"{given!r} is no task; expected a class derived from toolagent.tasks.Task")
    _check_members(given)
    reference = reference_of_task(given)
    for other, task in TASKS.items():
        # Ids of environments tell words apart by capitals: 'a_2' and 'a2' would be the same.
        if other != reference and task.name.replace("_", "") == given.name.replace("_", ""):
            alike = "" if task.name == given.name else f", '{task.name}' but for '_'"
            raise UserError(
                f"{file_of(given)}: the name '{given.name}' is that of the task {other}{alike}; "
                "choose another"
            )
    TASKS[reference] = given
    return given


def task_class(reference: str) -> type[Task]:
    """The task of that name or reference; one of another module is imported.

    Raises:
        UserError: there is none, it can't be imported, or it is no whole task.
    """
    if reference in TASKS:
        return TASKS[reference]
    if is_outside(reference):
        return register_task(load_class(reference, Task))
    by_name = {task.name: task for task in TASKS.values()}
    if reference not in by_name:
        raise UserError(
            f"no task '{reference}'; {nearest(reference, by_name)} (a task of your own is named "
            "as my_module:MyTask)"
        )
    return by_name[reference]


def get_task(reference: str) -> Task:
    """An instance of `task_class`."""
    return task_class(reference)()


def _check_members(given: type[Task]) -> None:
    """Raises UserError for a class that lacks what training needs."""
    where = f"{file_of(given)}: task {given.__name__}"
    missing = [name for name in _NEEDED if not hasattr(given, name)]
    missing += sorted(getattr(given, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}")
    for name, kind in _NEEDED.items():
        value = getattr(given, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{where}: {name} is {value!r}; expected {_IN_WORDS[kind]}")
    if not re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", given.name):
        raise UserError(
            f"{where}: name is '{given.name}'; expected lower-case letters a-z and digits, with "
            "'_' between words"
        )
    for name, least in (
        *((name, 1) for name in ("num_stages", "context_length", "max_actions")),
        *(("first_stage", 0), ("response_length", 0)),
    ):
        value = getattr(given, name)
        if not isinstance(value, int) or not least <= value <= _MOST:
            raise UserError(f"{where}: {name} is {value!r}; expected {least}..{_MOST}")
    if given.first_stage + given.num_stages - 1 > _MOST:
        raise UserError(f"{where}: its last stage is above {_MOST}")
    if not given.answer_ends and given.vocabulary.start in given.vocabulary.actions:
        # The beginning of an episode could not be told from the middle of one.
        raise UserError(
            f"{where}: answer_ends is False, so the vocabulary's start, {given.vocabulary.start}, "
            "must be no action"
        )
    if given.formulas and len(given.formulas) != given.num_stages:
        raise UserError(
            f"{where} has {len(given.formulas)} formulas; expected one for each of its "
            f"{given.num_stages} stages"
        )
    if (fault := check_posed_by(given)) is not None:
        raise UserError(f"{where}: {fault}")
    if inspect.signature(given).parameters:
        raise UserError(f"{where}: its constructor has parameters; a task is made without any")


_IN_WORDS = {
    str: "text",
    int: "a whole number",
    Vocabulary: "a toolagent.tasks.Vocabulary",
}
