"""`toolagent.certify`: what `python -m toolagent.evaluate --json` writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from toolagent import cli
from toolagent.api.policies import TaskLike, policy_at
from toolagent.api.threads import one_torch_thread
from toolagent.evaluate.documents import answered_file, certified


def certify(
    path: str | os.PathLike[str],
    problems: str | os.PathLike[str] | None = None,
    *,
    task: TaskLike = None,
    network: str | None = None,
) -> dict[str, Any]:
    """Counts the problems that a checkpoint's greedy agent solves; Ray is not needed.

    Args:
        path: a checkpoint's folder, or a run's folder (then its last checkpoint); also a URI.
        problems: a CSV file of problems to answer instead of all.
        task: of a checkpoint of other people's code: as in `load_agent`.
        network: the same of its network.

    Returns:
        What `python -m toolagent.evaluate --json` writes: `{"task", "stages": [{"stage",
        "problems", "solved", "accuracy"}]}`, and with `problems` also `"answers"`.

    Raises:
        UserError: there is no sound checkpoint, or the file is not as it should be.
    """
    with one_torch_thread(), cli.file_faults():
        policy = policy_at(path, task, network)
        if problems is None:
            return certified(policy)[0]
        return answered_file(policy, Path(problems).expanduser())[0]
