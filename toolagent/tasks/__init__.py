"""Tasks: problem generators and the machines that give the tool tokens their meaning."""

from __future__ import annotations

from toolagent.errors import nearest
from toolagent.tasks.base import Problems, Registers, Task, Transition
from toolagent.tasks.calculator import CalculatorTask
from toolagent.tasks.expression import ExpressionTask
from toolagent.tasks.tutorial import TutorialTask

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (TutorialTask, CalculatorTask, ExpressionTask)
}

__all__ = ["TASKS", "Problems", "Registers", "Task", "Transition", "get_task"]


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in TASKS:
        raise ValueError(f"no task '{name}'; {nearest(name, TASKS)}")
    return TASKS[name]()
