"""What Gymnasium's specs name: 'single_calculator' and 'vector_calculator', one pair for each task.

Each makes the environment of its own task only. They are looked up by name, because a spec whose
entry point is a function can't be written as JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from toolagent.envs.registration import settings_of_task
from toolagent.envs.single import ToolEnv
from toolagent.envs.vector import ToolVectorEnv

_CLASSES: dict[str, type] = {"single": ToolEnv, "vector": ToolVectorEnv}


def __getattr__(name: str) -> Callable[..., Any]:
    kind, _, task = name.partition("_")
    if kind in _CLASSES and not task.startswith("_"):  # Python asks for names with underscores
        return functools.partial(_create, _CLASSES[kind], task.replace("/", ":"))
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def _create(env_class: type, bound_task: str, **settings: Any) -> Any:
    return env_class(**settings_of_task(bound_task, settings))
