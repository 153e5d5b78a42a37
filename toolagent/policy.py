"""Policy folders: the part of a checkpoint that says what the agent does, in two plain files.

`model.safetensors` holds the network's weights; `policy.json` names the task, the network's sizes
and how the weights came about, and carries the SHA-256 of the weights, so that a torn or exchanged
file is noticed. Whatever else lies in the folder is not looked at: loading a policy reads numbers
and text and can execute nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from toolagent import __version__
from toolagent.errors import UserError, nearest
from toolagent.models.network import NetworkSizes, StageGRUNetwork
from toolagent.tasks import TASKS, Task, get_task

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
POLICY_FILE = "policy.json"
NETWORK_CLASS = StageGRUNetwork.__name__


@dataclass(frozen=True)
class Policy:
    """A trained agent, ready to play."""

    network: StageGRUNetwork  # on the CPU, in evaluation mode
    task: Task
    metadata: dict[str, Any]  # what `policy.json` says
    folder: Path  # where it was found: the checkpoint, also when a run's folder was given


def save_policy(
    folder: Path,
    network: StageGRUNetwork,
    task_name: str,
    *,
    env_steps: int | None = None,
    iteration: int | None = None,
    seed: int | None = None,
    stages: Sequence[dict[str, Any]] = (),
    config_sha256: str | None = None,
) -> None:
    """Writes a policy folder; at any moment each of its files is whole or absent.

    `policy.json` comes last, so a folder that has one is complete.

    Args:
        folder: made if it is missing.
        network: on any device.
        task_name: a name of `toolagent.tasks.TASKS`.
        env_steps: actions learned from so far.
        iteration: of training.
        seed: of the run.
        stages: accuracies, as in a run's `summary.json`, where they are known.
        config_sha256: of the run's resolved configuration.

    Raises:
        ValueError: there is no such task, or the network's sizes are not the task's.
    """
    task = get_task(task_name)
    expected = NetworkSizes(task.context_vocabulary, task.num_stages, network.sizes.embedding_size)
    if network.sizes != expected:
        raise ValueError(f"the network has {network.sizes}; task '{task_name}' needs {expected}")
    # Clones: on a GPU the GRU's weights are views of one buffer, which safetensors refuses.
    weights = safetensors.torch.save(
        {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    )
    metadata = {
        "format": FORMAT,
        "task": task_name,
        "network": {"class": NETWORK_CLASS, **network.sizes._asdict()},
        "env_steps": env_steps,
        "iteration": iteration,
        "seed": seed,
        "stages": list(stages),
        "config_sha256": config_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "toolagent_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, weights)
    write_atomically(folder / POLICY_FILE, (json.dumps(metadata, indent=2) + "\n").encode())


def load_policy(path: str | Path, expected_task: str | None = None) -> Policy:
    """Reads a policy.

    Args:
        path: a policy folder (`DIR/checkpoints/checkpoint_000012`); or a run's `DIR`: then the
            checkpoint that its `summary.json` names, or without one the newest.
        expected_task: what the caller needs it to be a checkpoint of.

    Raises:
        UserError: there is no sound checkpoint there, or it is one of another task.
    """
    path = Path(path)
    try:
        folder = _find(path)
        return _load(folder, expected_task)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Puts a file in place whole or not at all, also if the machine stops in between.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself is in the folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# Finding -------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    """The policy folder that `path` means."""
    if not path.exists():
        if path.is_symlink():
            raise UserError(f"{path} is a link to nothing; expected a checkpoint folder")
        raise UserError(f"no checkpoint '{path}': there is no such folder")
    if not path.is_dir():
        raise UserError(f"{path} is a file; expected a checkpoint folder (it holds {POLICY_FILE})")
    if (path / POLICY_FILE).exists():
        return path
    if (path / "summary.json").is_file():
        named = _named_by_summary(path)
        if named is not None:
            return named
    newest = _newest(path / "checkpoints")
    if newest is not None:
        return newest
    newest = _newest(path)
    if newest is not None:
        raise UserError(f"{path} holds checkpoints but is none; name one, such as '{newest}'")
    raise UserError(f"no checkpoint in '{path}': {_what_is_there(path)}")


def _named_by_summary(run: Path) -> Path | None:
    """The checkpoint that a run's summary names; None if it names none."""
    file = run / "summary.json"
    named = _read_json(file).get("checkpoint")
    if named is None:
        return None
    if not isinstance(named, str):
        raise UserError(f"{file}: 'checkpoint' is no path but {named!r}")
    # A run's folder may have been moved since the summary was written with a full path in it.
    candidates = [run / named, run / "checkpoints" / Path(named).name]
    for candidate in candidates:
        if candidate.is_dir():
            if not (candidate / POLICY_FILE).exists():
                raise UserError(f"no checkpoint in '{candidate}': {_what_is_there(candidate)}")
            return candidate
    raise UserError(f"{file} names the checkpoint '{named}', which does not exist")


def _newest(folder: Path) -> Path | None:
    """The complete policy folder with the highest number in its name."""
    if not folder.is_dir():
        return None
    complete = [child for child in folder.iterdir() if (child / POLICY_FILE).is_file()]

    def age(child: Path) -> tuple[int, str]:
        number = re.search(r"(\d+)$", child.name)
        return (int(number[1]) if number else -1, child.name)

    return max(complete, key=age, default=None)


def _what_is_there(folder: Path) -> str:
    if any(child.suffix in (".pkl", ".pickle", ".pt", ".pth") for child in folder.iterdir()):
        return f"only pickles, which are never opened; expected {POLICY_FILE} and {WEIGHTS_FILE}"
    return f"it has no {POLICY_FILE}"


# Reading -------------------------------------------------------------------------------------


def _load(folder: Path, expected_task: str | None) -> Policy:
    file = folder / POLICY_FILE
    metadata = _read_json(file)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {metadata.get('format')!r}; "
            f"this version of toolagent ({__version__}) reads format {FORMAT}"
        )
    name = metadata.get("task")
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"{file}: no task {name!r}; {nearest(str(name), TASKS)}")
    if expected_task is not None and name != expected_task:
        raise UserError(f"{folder} is a checkpoint of task '{name}', not '{expected_task}'")
    task = get_task(name)
    sizes = _sizes(file, metadata.get("network"), task)
    tensors = _read_weights(folder / WEIGHTS_FILE, metadata.get("weights_sha256"))
    return Policy(_build(folder / WEIGHTS_FILE, sizes, tensors), task, metadata, folder)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} is missing or no regular file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: expected a JSON object")
    return content


def _sizes(file: Path, network: Any, task: Task) -> NetworkSizes:
    """The network's sizes, checked against the task's."""
    expected = {
        "class": NETWORK_CLASS,
        "context_vocabulary": task.context_vocabulary,
        "num_stages": task.num_stages,
    }
    if not isinstance(network, dict):
        raise UserError(f"{file}: 'network' is {network!r}; expected its class and its sizes")
    for key, right in expected.items():
        if network.get(key) != right:
            raise UserError(
                f"{file}: network.{key} is {network.get(key)!r}; task '{task.name}' needs {right!r}"
            )
    width = network.get("embedding_size")
    if type(width) is not int or width < 1:
        raise UserError(f"{file}: network.embedding_size is {width!r}; expected a whole number > 0")
    return NetworkSizes(task.context_vocabulary, task.num_stages, width)


def _read_weights(file: Path, sha256: Any) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise UserError(f"{file} is missing or no regular file")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{file} is damaged or of another checkpoint: "
            f"its SHA-256 is not the one in {POLICY_FILE}"
        )
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype torch has not
        raise UserError(f"{file} is damaged: no safetensors file ({error})") from error


def _build(file: Path, sizes: NetworkSizes, tensors: dict[str, torch.Tensor]) -> StageGRUNetwork:
    """The network with these weights; nothing of a declared size is allocated unchecked."""
    width = tensors.get("token_embedding.weight", torch.empty(0, 0)).shape[-1:]
    if tuple(width) != (sizes.embedding_size,):
        raise UserError(
            f"{file}: its embeddings are {next(iter(width), 0)} wide; "
            f"{POLICY_FILE} says embedding_size {sizes.embedding_size}"
        )
    with torch.device("meta"):
        network = StageGRUNetwork(sizes)
    expected = network.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        fault = "are missing" if name in expected else f"do not belong to a {NETWORK_CLASS}"
        raise UserError(f"{file}: weights '{name}' {fault}")
    for name, parameter in expected.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (parameter.shape, torch.float32):
            raise UserError(
                f"{file}: weights '{name}' are {tensor.dtype} {tuple(tensor.shape)}; "
                f"expected {torch.float32} {tuple(parameter.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{file}: weights '{name}' are not finite: the training had diverged")
    network.load_state_dict(tensors, assign=True)
    return network.eval()
