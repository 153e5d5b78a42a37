"""Checkpoints of a run: a policy that anybody can read, and the state to continue from.

    checkpoints/checkpoint_000012/
        policy.json, model.safetensors   the agent (`toolagent.checkpoints.policy`)
        run.json                         where the run stood
        state.json, state.safetensors    the whole state of the algorithm (`state_files`)
        rllib_checkpoint.json            tells RLlib's `from_checkpoint` what to use in its place
        manifest.json                    size and SHA-256 of each file (`manifest`)

No file is a pickle. A checkpoint is written under another name and renamed when all of it is on
the disk, so that there is never a moment without a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolagent.checkpoints.manifest import (
    TornCheckpoint,
    read_manifest,
    verify,
    write_manifest,
)
from toolagent.checkpoints.policy import POLICY_FILE, save_policy
from toolagent.checkpoints.run_files import Manifest, RunState, parsed, read_bytes, written
from toolagent.checkpoints.state_files import encode_state, read_state
from toolagent.errors import UserError, labelled
from toolagent.files import sync_folder, write_synced
from toolagent.models.base import AgentNetwork

RUN_FILE = "run.json"
# RLlib's `from_checkpoint` reads a checkpoint's version there, and says what it can't take: this.
RLLIB_FILE = "rllib_checkpoint.json"
_NOT_RLLIBS = (
    "none of RLlib: this is a checkpoint of toolagent, to be continued by `python -m toolagent.run "
    "--resume RUN`, or begun with by `--init-from CHECKPOINT`; its agent is loaded by "
    "`toolagent.checkpoints.policy.load_policy(CHECKPOINT)`"
)
_PREFIX = "checkpoint_"
_PARTIAL, _REPLACED = ".partial", ".replaced"


def write_checkpoint(
    checkpoints: Path,
    algorithm: Any,
    network: AgentNetwork,
    run_state: RunState,
    keep: int,
    accuracy: dict[str, float] | None = None,
    **policy_metadata: Any,
) -> Path:
    """Writes one checkpoint; then removes all but the `keep` newest and the best.

    Args:
        checkpoints: the folder they are in.
        algorithm: whose state is saved.
        network: the learner's present weights.
        run_state: where the run stands.
        keep: how many of the newest checkpoints stay.
        accuracy: stage -> 0..1 of the curriculum's stages; says which checkpoint is the best.
        policy_metadata: for `save_policy`.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it can't be written. What was there before is whole and in place.
    """
    final = checkpoints / f"{_PREFIX}{run_state.iteration:06d}"
    partial = checkpoints / f".{final.name}{_PARTIAL}"
    finish_replacing(checkpoints)
    _remove(partial)
    try:
        partial.mkdir(parents=True)
        files = encode_state(algorithm.get_state())
        files[RUN_FILE] = written(asdict(run_state), RunState)
        files[RLLIB_FILE] = (json.dumps({"checkpoint_version": _NOT_RLLIBS}) + "\n").encode()
        for name, content in files.items():
            write_synced(partial / name, content)
        stand = {"iteration": run_state.iteration, "env_steps": run_state.env_steps}
        save_policy(partial, network, **stand, **policy_metadata)
        contents = {
            **stand,
            "accuracy": accuracy or {},
            "phase": run_state.phase,
            "config_sha256": policy_metadata.get("config_sha256"),
        }
        write_manifest(partial, contents)
    except BaseException:
        _remove(partial)
        raise
    if final.exists():  # the run stood here before: the old one makes way when the new is whole
        replaced = checkpoints / f".{final.name}{_REPLACED}"
        os.replace(final, replaced)
        os.replace(partial, final)
        _remove(replaced)
    else:
        os.replace(partial, final)
    sync_folder(checkpoints)
    best = best_checkpoint(checkpoints)
    for old in list_checkpoints(checkpoints)[:-keep]:
        if old != best:
            _remove(old)
    return final


def restore_checkpoint(algorithm: Any, folder: Path) -> None:
    """Sets the algorithm to the state in a checkpoint, whose files are verified first.

    Raises:
        TornCheckpoint: the checkpoint is not whole.
    """
    verify(folder)
    algorithm.set_state(read_algorithm_state(folder))


def read_algorithm_state(folder: Path) -> Any:
    """The state in a checkpoint that was verified.

    Raises:
        TornCheckpoint: its files were listed in the manifest as they are, and hold no state.
    """
    try:
        return read_state(folder)
    except (OSError, ValueError) as error:
        raise TornCheckpoint(f"holds no state of an algorithm ({error})") from error


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The folders of checkpoints, oldest first; whether each is whole is not looked at."""
    return [path for path in _attempts(checkpoints)[::-1] if (path / POLICY_FILE).is_file()]


def newest_checkpoint(
    checkpoints: Path, note: Callable[[str], None] | None = None
) -> tuple[Path, RunState]:
    """The newest whole checkpoint, and its run state.

    Args:
        checkpoints: the folder they are in.
        note: told, in a line each, of newer ones that are not whole and are passed over.

    Raises:
        UserError: there is none.
    """
    torn = []
    for folder in _attempts(checkpoints):
        try:
            state = read_run_state(folder)
        except TornCheckpoint as fault:
            torn.append(f"{folder.name}: {fault}")
            continue
        if note is not None:
            for line in torn:
                note(f"passed over {line}")
        return folder, state
    found = f" ({'; '.join(torn)})" if torn else ""
    raise UserError(
        f"--resume: no complete checkpoint in {checkpoints}{found}; start a new run instead"
    )


def never_wrote_one(checkpoints: Path) -> bool:
    """A run began here and was killed before its first checkpoint: rows come after the folder."""
    if not checkpoints.is_dir():
        return not (checkpoints.parent / "progress.jsonl").exists()
    return not _attempts(checkpoints)


def read_run_state(folder: Path) -> RunState:
    """Where the run stood, from a checkpoint that is whole.

    Raises:
        TornCheckpoint: it is not whole.
        UserError: it is whole, and says what this version can't go on from.
    """
    verify(folder)
    file = folder / RUN_FILE
    with labelled("--resume "):
        data = read_bytes(file)
        state = parsed(data, RunState, str(file))
    for name in asdict(state).keys() - json.loads(data).keys():
        raise UserError(f"--resume {file}: has no {name}; written by another version of toolagent?")
    return state


def best_checkpoint(checkpoints: Path) -> Path | None:
    """The one with the highest accuracy on the curriculum's last stage; of equals, on the stage
    before, and so on; of equals in all of them, the one with the fewest env steps. Those of a
    student come before those of the agent that it imitates, and of equals its latest: what it can
    do beyond these stages comes last.

    Accuracies are those at the time: certified in a run's last checkpoint, measured in others.
    """
    ranked = []
    for folder in list_checkpoints(checkpoints):
        try:
            manifest = read_manifest(folder)
        except TornCheckpoint:
            continue
        ranked.append((manifest, folder))
    stages = sorted({stage for manifest, _ in ranked for stage in manifest.accuracy}, reverse=True)

    def rank(entry: tuple[Manifest, Path]) -> tuple[int, list[float], int]:
        manifest = entry[0]
        accuracies = [manifest.accuracy.get(stage, -1.0) for stage in stages]
        steps = manifest.env_steps or 0
        return manifest.phase, accuracies, steps if manifest.phase else -steps

    return max(ranked, key=rank)[1] if ranked else None


def set_aside_later(checkpoints: Path, iteration: int) -> list[Path]:
    """Renames the checkpoints after an iteration that a run goes on from: they are no part of its
    course any more. Returns their new paths, `abandoned_000020` and the like."""
    aside = []
    for folder in _attempts(checkpoints):
        number = folder.name.removeprefix(_PREFIX)
        if number.isascii() and number.isdecimal() and int(number) > iteration:
            target, again = checkpoints / f"abandoned_{number}", 1
            while target.exists():
                again += 1
                target = checkpoints / f"abandoned_{number}-{again}"
            os.replace(folder, target)
            aside.append(target)
    return aside


def finish_replacing(checkpoints: Path) -> None:
    """Puts back what a kill left between the two renames of `write_checkpoint`, and clears away
    what it left of checkpoints that were not finished."""
    if not checkpoints.is_dir():
        return
    for path in checkpoints.glob(f".{_PREFIX}*{_REPLACED}"):
        final = checkpoints / path.name.removeprefix(".").removesuffix(_REPLACED)
        if final.exists():
            _remove(path)
        else:
            os.replace(path, final)
    for path in checkpoints.glob(f".{_PREFIX}*{_PARTIAL}"):
        _remove(path)


def _attempts(checkpoints: Path) -> list[Path]:
    """All that may be meant as a checkpoint, newest first, incomplete ones included."""
    if not checkpoints.is_dir():
        return []
    return sorted(
        (path for path in checkpoints.iterdir() if path.name.startswith(_PREFIX)), reverse=True
    )


def _remove(folder: Path) -> None:
    """Removes a folder. A checkpoint is renamed first, so no half-removed one is ever listed."""
    if not folder.name.startswith("."):
        doomed = folder.with_name(f".{folder.name}{_PARTIAL}")
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            os.replace(folder, doomed)
        except OSError:  # it stays; another one too many does no harm
            return
        folder = doomed
    shutil.rmtree(folder, ignore_errors=True)
