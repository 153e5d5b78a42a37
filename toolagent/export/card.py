"""The model card: `policy.json` of a checkpoint, with what a user of the export alone needs.

Its folder is a checkpoint too: `evaluate`, `explain` and `--init-from` read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolagent.checkpoints.policy import POLICY_FILE, WEIGHTS_FILE, Policy, vocabulary_record
from toolagent.checkpoints.run_files import Summary, as_document, read_file
from toolagent.errors import UserError
from toolagent.rollouts.certification import StageAccuracy
from toolagent.tasks import Task


def model_card(policy: Policy, stages: Iterable[StageAccuracy], folder: Path) -> dict[str, Any]:
    """The card without the comparison of the artefacts.

    Args:
        policy: the exported agent.
        stages: its accuracy, counted now.
        folder: with all files of the export but the card.
    """
    tensors = policy.network.state_dict()
    task = policy.task
    return {
        **policy.metadata,
        **vocabulary_record(task.vocabulary),  # an old checkpoint does not tell it
        "stages": [row.record() for row in stages],
        "formulas": {str(stage): task.formula(stage) for stage in task.stages},
        "context_length": task.context_length,
        "action_limits": action_limits(task),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in tensors.items()
        },
        "training_record": training_record(policy),
        "files_sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
            if file.name not in (POLICY_FILE, WEIGHTS_FILE)
        },
    }


def action_limits(task: Task) -> dict[str, int]:
    """The most actions of an episode, by stage."""
    limits = task.action_limit(task.check_stage([*task.stages]))
    return {str(stage): int(limit) for stage, limit in zip(task.stages, limits, strict=True)}


def training_record(policy: Policy) -> dict[str, Any]:
    """How the weights were trained: the records of the checkpoint and of its run."""
    keys = ("env_steps", "iteration", "seed", "trained_stages", "config_sha256", "created")
    record: dict[str, Any] = {key: policy.metadata.get(key) for key in keys}
    summary = policy.folder.resolve().parent.parent / "summary.json"
    try:
        run = as_document(read_file(summary, Summary))
        named = Path(str(run.get("checkpoint"))).name == policy.folder.resolve().name
    except UserError:  # a checkpoint needs no run around it
        return record | policy.metadata.get("training_record", {})
    if named:
        kept = ("wall_time_s", "env_steps_per_s", "stopped_by", "stages")
        record["run"] = {key: run[key] for key in kept if key in run}
    return record
