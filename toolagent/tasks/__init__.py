"""Tasks: problem generators and the machines that give the tool tokens their meaning."""

from __future__ import annotations

from toolagent.tasks.base import Lies, Problems, Registers, Task, Transition
from toolagent.tasks.calculator import CalculatorTask
from toolagent.tasks.expression import ExpressionTask, LongExpressionTask
from toolagent.tasks.registry import TASKS, get_task, register_task, task_class
from toolagent.tasks.toolcall import ToolCallTask
from toolagent.tasks.tutorial import TutorialTask
from toolagent.vocabulary import Vocabulary

for _task in (TutorialTask, CalculatorTask, ExpressionTask, LongExpressionTask, ToolCallTask):
    register_task(_task)

__all__ = [
    "TASKS",
    "Lies",
    "Problems",
    "Registers",
    "Task",
    "Transition",
    "Vocabulary",
    "get_task",
    "register_task",
    "task_class",
]
