"""How programs name a checkpoint, and the code that it needs."""

from __future__ import annotations

import os

from toolagent.checkpoints.policy import Policy, load_policy
from toolagent.envs import register_task
from toolagent.tasks import Task
from toolagent.tasks.registry import reference_of_task

TaskLike = str | type[Task] | None  # 'module:Class', the class itself, or none named


def policy_at(path: str | os.PathLike[str], task: TaskLike, network: str | None) -> Policy:
    """The policy of a checkpoint or of a run's folder.

    Raises:
        UserError: there is none that is sound, or it needs code that was not named.
    """
    if isinstance(task, type):
        task = reference_of_task(register_task(task))
    return load_policy(os.path.expanduser(os.fspath(path)), task=task, network=network)
