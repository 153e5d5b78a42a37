"""Checkpoints of a run: a policy that anybody can read, and RLlib's state to continue from.

    checkpoints/checkpoint_000012/
        policy.json, model.safetensors   the agent (`toolagent.policy`); no pickle
        run.json                         where the run stood
        algorithm/                       RLlib's own checkpoint, pickles included: `--resume` only

A checkpoint is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from toolagent.errors import UserError
from toolagent.models.base import AgentNetwork
from toolagent.policy import POLICY_FILE, save_policy

RUN_FILE = "run.json"
ALGORITHM = "algorithm"
_PREFIX = "checkpoint_"


def write_checkpoint(
    checkpoints: Path,
    algorithm: Any,
    network: AgentNetwork,
    run_state: dict[str, Any],
    keep: int,
    **policy_metadata: Any,
) -> Path:
    """Writes one checkpoint and removes all but the `keep` newest.

    Args:
        checkpoints: the folder they are in.
        algorithm: whose state is saved.
        network: the learner's present weights.
        run_state: plain JSON with at least `iteration`.
        keep: how many checkpoints stay.
        policy_metadata: for `save_policy`.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoints / f"{_PREFIX}{run_state['iteration']:06d}"
    partial = checkpoints / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    algorithm.save_to_path(str((partial / ALGORITHM).resolve()))
    (partial / RUN_FILE).write_text(json.dumps(run_state, indent=2) + "\n", encoding="utf-8")
    # The policy file comes last: a folder that has one is complete.
    save_policy(partial, network, iteration=run_state["iteration"], **policy_metadata)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    for old in list_checkpoints(checkpoints)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(
        folder
        for folder in checkpoints.iterdir()
        if folder.name.startswith(_PREFIX) and (folder / POLICY_FILE).is_file()
    )


def newest_checkpoint(checkpoints: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that a run can continue from, and its run state.

    Raises:
        UserError: there is none.
    """
    for folder in reversed(list_checkpoints(checkpoints)):
        if not (folder / ALGORITHM).is_dir():
            continue
        try:
            state = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(state, dict):
            return folder, state
    raise UserError(f"--resume: no complete checkpoint in {checkpoints}; start a new run instead")
