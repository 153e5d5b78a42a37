"""Names under which the environments are found: Gymnasium's at import, RLlib's on request."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from toolagent.tasks import TASKS, Task, registry, task_class

_ENTRY_POINTS = "toolagent.envs.entry_points"


def env_id(task: str) -> str:
    """The Gymnasium (and RLlib) id of a task's environment: 'toolagent/Calculator-v0'.

    Args:
        task: its name or reference; a task of another module is imported.
    """
    given = task_class(task)
    words = "".join(word.capitalize() for word in given.name.split("_"))
    return f"toolagent/{given.env_name or words}-v0"


def register_task(given: type[Task]) -> type[Task]:
    """Makes a task known by its name, and its environment to Gymnasium.

    `gymnasium.make(id)` gives the single environment, `gymnasium.make_vec(id, num_envs=N)` the
    native vector environment. Returns the class, so it can be used as a decorator.

    Raises:
        UserError: it is no whole task, or another task has its name.
    """
    reference = registry.reference_of_task(registry.register_task(given))
    task = reference.replace(":", "/")  # a ':' would end the module's name
    gym.registry.pop(env_id(reference), None)
    gym.register(
        id=env_id(reference),
        entry_point=f"{_ENTRY_POINTS}:single_{task}",
        vector_entry_point=f"{_ENTRY_POINTS}:vector_{task}",
        disable_env_checker=True,  # checked once by the tests, not in every process
    )
    return given


def register_with_gymnasium() -> None:
    """Registers every task of this package."""
    for task in [*TASKS.values()]:
        register_task(task)


def task_of_env_id(registered: Any) -> str | None:
    """The task whose id that is, None for anything else: the inverse of `env_id`."""
    return next((reference for reference in TASKS if env_id(reference) == registered), None)


def settings_of_task(task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an environment's constructor with the task that its id stands for.

    Raises:
        ValueError: the settings name another task.
    """
    given = settings.get("task", task)
    if given != task:
        right = f"; {env_id(given)} is" if given in TASKS else ""
        raise ValueError(f"{env_id(task)} is not an environment of task '{given}'{right}")
    return {**settings, "task": task}


def create_for_rllib(env_config: Mapping[str, Any], task: str | None = None) -> Any:
    """RLlib's env creator: the vector env where RLlib asks for `num_envs`, else the single one.

    Args:
        env_config: the constructor's arguments (RLlib gives an `EnvContext`), `task` among them
            where the next argument is None.
        task: what the registered id stands for; `env_config` may repeat it.

    Raises:
        ValueError: no task, or two; or an argument that the environment refuses.

    RLlib seeds the env of runner i with `seed + i`, and Gymnasium env j in it with j more: sums
    that coincide.
    `env_config["seed"]`, the runner's index and `evaluation` therefore become the `stream` that is
    mixed into that seed. Where RLlib asks for `num_envs` the index is lost (`EnvContext | dict` is
    a plain dict); there seed and sum together still name the runner.
    """
    from toolagent.envs.single import ToolEnv
    from toolagent.envs.vector import ToolVectorEnv

    # RLlib's advantage estimation continues a truncated episode with the value of what comes next.
    # Behind the action limit nothing comes; with that value an agent that never answers is
    # content with its own expectations, and stock PPO unlearns `ANS`.
    settings: dict[str, Any] = {"limit_terminates": True} | dict(env_config)
    if task is not None:
        settings = settings_of_task(task, settings)
    elif "task" not in settings:
        raise ValueError("env_config names no task, and neither does the environment's id")
    settings.pop("recording", None)  # for the runner, which knows whole episodes
    seed = settings.pop("seed", None)
    evaluation = settings.pop("evaluation", False)
    num_envs = settings.pop("num_envs", None)
    worker = getattr(env_config, "worker_index", 0)
    stream = () if seed is None else (int(seed), int(worker), int(evaluation))
    if num_envs is None:
        settings.pop("earlier_stage_share", None)
        return ToolEnv(stream=stream, **settings)
    return ToolVectorEnv(num_envs=num_envs, stream=stream, **settings)


def register_with_rllib() -> None:
    """Registers every task in RLlib's registry, under the same ids. Needs Ray installed."""
    from ray.tune import register_env

    for reference in TASKS:
        register_env(env_id(reference), functools.partial(create_for_rllib, task=reference))
