"""Policy folders: the part of a checkpoint that says what the agent does, in two plain files.

`model.safetensors` holds the network's weights; `policy.json` names the task, the network's class
and sizes and how the weights came about, and carries the SHA-256 of the weights, so that a torn or
exchanged file is noticed. Whatever else lies in the folder is not looked at: loading a policy reads
numbers and text and can execute nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from toolagent import __version__
from toolagent.checkpoints.run_files import (
    Format,
    LastCheckpoint,
    PolicyCard,
    as_document,
    fault_of,
    parsed,
    read_bytes,
    read_file,
    written,
)
from toolagent.checkpoints.storage import fetched, is_uri
from toolagent.errors import UserError, nearest
from toolagent.files import write_atomically
from toolagent.models.base import AgentNetwork
from toolagent.models.registry import NETWORKS, network_class, network_name
from toolagent.outside import is_outside, is_reference
from toolagent.tasks import TASKS, Task, get_task
from toolagent.tasks.registry import reference_of_task
from toolagent.vocabulary import Interface, Vocabulary

_LONGEST_REFERENCE = 100  # characters that a message repeats
FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
POLICY_FILE = "policy.json"


@dataclass(frozen=True)
class Policy:
    """A trained agent, ready to play."""

    network: AgentNetwork  # on the CPU, in evaluation mode
    task: Task
    metadata: dict[str, Any]  # what `policy.json` says
    folder: Path  # where it was found: the checkpoint, also when a run's folder was given
    uri: str | None = None  # of the checkpoint, if it is on storage; the folder is gone then

    @property
    def place(self) -> str:
        """Where it was found, for people."""
        return self.uri or str(self.folder)

    def check_outside(self, path: Path) -> None:
        """Refuses to write into the checkpoint: it would not be whole any more.

        Raises:
            UserError: the path is in its folder.
        """
        folder = os.path.realpath(self.folder)
        if self.uri is None and os.path.realpath(path).startswith(folder + os.sep):
            raise UserError(f"{path}: is in the checkpoint {self.folder}; write it elsewhere")


def save_policy(
    folder: Path,
    network: AgentNetwork,
    task_name: str,
    *,
    env_steps: int | None = None,
    iteration: int | None = None,
    seed: int | None = None,
    stages: Sequence[dict[str, Any]] = (),
    trained_stages: Sequence[int] | None = None,
    config_sha256: str | None = None,
) -> None:
    """Writes a policy folder; at any moment each of its files is whole or absent.

    `policy.json` comes last, so a folder that has one is complete.

    Args:
        folder: made if it is missing.
        network: on any device.
        task_name: of the task: its name or reference.
        env_steps: actions learned from so far.
        iteration: of training.
        seed: of the run.
        stages: accuracies, as in a run's `summary.json`, where they are known.
        trained_stages: what the training drew its problems from, where that is known.
        config_sha256: of the run's resolved configuration.

    Raises:
        ValueError: there is no such task, or the network is of another task's interface.
    """
    task = get_task(task_name)
    if network.interface != task.interface:
        raise ValueError(
            f"the network was made for {network.interface}; task '{task_name}' has {task.interface}"
        )
    if "<locals>" in type(network).__qualname__:
        raise ValueError(f"a {type(network).__name__} can't be loaded again: it is in no module")
    weights = weights_file(network)
    metadata = {
        "format": FORMAT,
        "task": reference_of_task(task),
        "network": {
            "class": _class_name(type(network)),
            **_sizes_of(task.interface),
            **network.options._asdict(),
        },
        **vocabulary_record(task.vocabulary),
        "env_steps": env_steps,
        "iteration": iteration,
        "seed": seed,
        "stages": list(stages),
        "trained_stages": None if trained_stages is None else list(trained_stages),
        "config_sha256": config_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "toolagent_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, weights)
    write_atomically(folder / POLICY_FILE, written(metadata, PolicyCard))


def weights_file(network: AgentNetwork) -> bytes:
    """The bytes of its `model.safetensors`; the same weights always give the same bytes."""
    # Clones: on a GPU the GRU's weights are views of one buffer, which safetensors refuses.
    return safetensors.torch.save(
        {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    )


def load_policy(
    path: str | Path,
    expected_task: str | None = None,
    *,
    task: str | None = None,
    network: str | None = None,
) -> Policy:
    """Reads a policy.

    Args:
        path: a policy folder (`DIR/checkpoints/checkpoint_000012`); or a run's `DIR`: then the
            checkpoint that its `summary.json` names, or without one the newest. A URI
            (`s3://bucket/DIR`) means the same on storage.
        expected_task: what the caller needs it to be a checkpoint of.
        task: the user's word for a task of another module, 'my_module:MyTask': only what the user
            names is imported, never what the checkpoint does.
        network: the same of a network.

    Raises:
        UserError: there is no sound checkpoint there, or it is one of another task.
    """
    if is_uri(path):
        with fetched(str(path), "checkpoint") as (copy, storage):
            policy = load_policy(copy, expected_task, task=task, network=network)
            uri = storage.name_of(policy.folder.relative_to(copy).as_posix().removeprefix("."))
            return dataclasses.replace(policy, uri=uri)
    if str(path) == "":
        raise UserError("no checkpoint '': expected the name of its folder")
    path = Path(path)
    try:
        folder = _find(path)
        return _load(folder, expected_task, task, network)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from error


# Finding -------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    """The policy folder that `path` means."""
    if not path.exists():
        raise UserError(f"no checkpoint '{path}': there is no such folder")
    if not path.is_dir():
        if path.suffix == ".onnx":
            raise UserError(
                f"{path} is an ONNX file: it can be run, not loaded; "
                "expected the checkpoint that it was exported from, or the folder it lies in"
            )
        raise UserError(f"{path} is a file; expected a checkpoint folder (it holds {POLICY_FILE})")
    if (path / POLICY_FILE).exists():
        return path
    if (path / "summary.json").is_file():
        named = _named_by_summary(path)
        if named is not None:
            return named
    if newest := _newest(path / "checkpoints"):
        return newest
    if newest := _newest(path):
        raise UserError(f"{path} holds checkpoints but is none; name one, such as '{newest}'")
    raise UserError(f"no checkpoint in '{path}': {_what_is_there(path)}")


def _named_by_summary(run: Path) -> Path | None:
    """The checkpoint that a run's summary names; None if it names none."""
    file = run / "summary.json"
    named = read_file(file, LastCheckpoint).checkpoint
    if named is None:
        return None
    inside = os.path.abspath(run) + os.sep
    # A run's folder may have been moved since the summary was written with a full path in it.
    for candidate in (run / named, run / "checkpoints" / Path(named).name):
        # Somebody else's summary leads nowhere but into the run's own folder.
        if candidate.is_dir() and os.path.abspath(candidate).startswith(inside):
            if not (candidate / POLICY_FILE).exists():
                raise UserError(f"no checkpoint in '{candidate}': {_what_is_there(candidate)}")
            return candidate
    raise UserError(f"{file} names the checkpoint '{named}', which does not exist")


def _newest(folder: Path) -> Path | None:
    """The complete policy folder with the highest number in its name."""

    def number(file: Path) -> int:
        return int("".join(re.findall(r"[0-9]+$", file.parent.name)) or -1)

    # Hidden: not finished. Abandoned: of a course that a resumed run left.
    others = (".", "abandoned_")
    complete = [
        file
        for file in sorted(folder.glob(f"*/{POLICY_FILE}"))
        if not file.parent.name.startswith(others) and file.is_file()
    ]
    return max(complete, key=number).parent if complete else None


def _what_is_there(folder: Path) -> str:
    if any(child.suffix in (".pkl", ".pickle", ".pt", ".pth") for child in folder.iterdir()):
        return f"only pickles, which are never opened; expected {POLICY_FILE} and {WEIGHTS_FILE}"
    return f"it has no {POLICY_FILE}"


# Reading -------------------------------------------------------------------------------------


def _load(
    folder: Path, expected_task: str | None, given_task: str | None, given_network: str | None
) -> Policy:
    file = folder / POLICY_FILE
    data = read_bytes(file)
    stated = parsed(data, Format, str(file)).format
    if stated != FORMAT:
        raise UserError(
            f"{file} has format {stated!r}; "
            f"this version of toolagent ({__version__}) reads format {FORMAT}"
        )
    card = parsed(data, PolicyCard, str(file))
    if expected_task is not None and card.task != expected_task:
        stated = card.task[:_LONGEST_REFERENCE]
        raise UserError(f"{folder} is a checkpoint of task {stated!r}, not '{expected_task}'")
    task = _task(file, card.task, given_task)
    _check_vocabulary(file, card, task)
    for stage in card.trained_stages or ():
        if stage not in task.stages:
            raise UserError(
                f"{file}: trained_stages names {stage}; task '{task.name}' has the stages "
                f"{task.stages[0]}..{task.stages[-1]}"
            )
    # Who expects a task has a configuration, which names the network too.
    flag = "--set rl_module.model_config.network=" if expected_task else "--network "
    chosen = _network_class(file, card.network, given_network, flag)
    tensors = _read_weights(folder / WEIGHTS_FILE, card.weights_sha256)
    shapes = _network(file, chosen, card.network, task, tensors)
    _check_weights(folder / WEIGHTS_FILE, shapes, tensors)
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
        network = chosen(task.interface, shapes.options)
    network.load_state_dict(tensors)
    return Policy(network.eval(), task, as_document(card), folder)


def _task(file: Path, name: str, given: str | None) -> Task:
    """The task that a checkpoint names; one of another module only if the user named it too."""
    if name in TASKS and (given is None or TASKS[name].name == get_task(given).name):
        return get_task(name)
    if not is_outside(name):
        if name not in TASKS:
            raise UserError(f"{file}: no task {name!r}; {nearest(name, TASKS)}")
        raise UserError(f"{file.parent} is a checkpoint of task '{name}', not of '{given}'")
    if given is None:
        raise UserError(
            f"{file.parent} is a checkpoint of the task {_not_imported(name, '--task ')}"
        )
    if given.rpartition(":")[2] != name.rpartition(":")[2]:  # its module may have moved
        raise UserError(f"{file.parent} is a checkpoint of the task '{name}', not of '{given}'")
    return get_task(given)


def vocabulary_record(vocabulary: Vocabulary) -> dict[str, Any]:
    """What `policy.json` says of the tokens: their names, and which have a role."""
    return {
        "vocabulary": list(vocabulary.actions),
        "context_vocabulary": list(vocabulary.names),
        "special_tokens": {
            "start": vocabulary.start_token,
            "pad": vocabulary.pad_token,
            "answer": vocabulary.answer_token,
        },
    }


def _check_vocabulary(file: Path, card: PolicyCard, task: Task) -> None:
    """Refuses a checkpoint that was trained with other tokens than the task has now."""
    now = vocabulary_record(task.vocabulary)
    if card.context_vocabulary not in (None, now["context_vocabulary"]) or (
        card.special_tokens not in (None, now["special_tokens"])
    ):
        raise UserError(f"{file}: its vocabulary is not the one that task '{task.name}' has now")


def _class_name(network: type[AgentNetwork]) -> str:
    """What a checkpoint calls the class: this package's own by their names alone."""
    name = network_name(network)
    return name if is_outside(name) else network.__name__


def _network_class(
    file: Path, record: dict[str, Any], given: str | None, flag: str
) -> type[AgentNetwork]:
    """The class that a checkpoint names; one of another module only if the user named it too."""
    name = record.get("class")
    known = {_class_name(network): network for network in NETWORKS.values()}
    if isinstance(name, str) and name in known:
        return known[name]
    if not isinstance(name, str) or not is_outside(name):
        raise UserError(f"{file}: network.class is {name!r}; {nearest(str(name), known)}")
    if given is None:
        raise UserError(f"{file.parent} has the network {_not_imported(name, flag)}")
    return network_class(given)


def _not_imported(name: str, flag: str) -> str:
    """A class that only the checkpoint names, and what the user has to add."""
    shown = name[:_LONGEST_REFERENCE]
    flagged = name if name == shown and is_reference(name) else "my_module:MyClass"
    return f"{shown!r}, which is not part of toolagent; if you trust that code, add {flag}{flagged}"


def _sizes_of(interface: Interface) -> dict[str, int]:
    """What a checkpoint says of the task's part in the shapes of the weights."""
    names = ("context_vocabulary", "num_actions", "num_stages")
    return {name: getattr(interface, name) for name in names}


def _read_weights(file: Path, sha256: str | None) -> dict[str, torch.Tensor]:
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


def _network(
    file: Path,
    chosen: type[AgentNetwork],
    record: dict[str, Any],
    task: Task,
    tensors: dict[str, torch.Tensor],
) -> AgentNetwork:
    """The recorded network, whose weights are shapes only: nothing of a declared size is allocated.

    No size can be larger than the number of all weights.
    """
    sizes, fields = _sizes_of(task.interface), chosen.Options._fields
    for unknown in sorted(record.keys() - {"class", *sizes, *fields}):
        raise UserError(f"{file}: network.{unknown} is unknown; {nearest(unknown, fields)}")
    for key, right in sizes.items():
        # A file without a number of actions is older than that: all tokens of its task were.
        if record.get(key, right if key == "num_actions" else None) != right:
            raise UserError(
                f"{file}: network.{key} is {record.get(key)!r}; task '{task.name}' needs {right!r}"
            )
    numbers = sum(tensor.numel() for tensor in tensors.values())
    given = {key: record[key] for key in fields if key in record}
    try:
        # An option that a file does not have is younger than the file: it was as by default.
        options = TypeAdapter(chosen.Options).validate_python(given, strict=True)
        for key, value in options._asdict().items():
            if type(value) is int and value > numbers:
                raise ValueError(f"{key} is {value}; {WEIGHTS_FILE} has only {numbers} numbers")
        with torch.device("meta"):
            return chosen(task.interface, options)
    except ValidationError as error:
        raise UserError(f"{file}: network.{fault_of(error)}") from error
    except ValueError as error:  # it names the option: 'num_heads is 0; it must be at least 1'
        raise UserError(f"{file}: network.{error}") from error
    except RuntimeError as error:  # torch: sizes whose product is beyond 64 bits
        raise UserError(f"{file}: there is no such network ({given})") from error


def _check_weights(file: Path, network: AgentNetwork, tensors: dict[str, torch.Tensor]) -> None:
    """Refuses weights that are not of the network's shapes, or not finite."""
    expected = network.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        stranger = f"do not belong to a {type(network).__name__}"
        fault = "are missing" if name in expected else stranger
        raise UserError(f"{file}: weights '{name}' {fault}")
    for name, parameter in expected.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (parameter.shape, parameter.dtype):
            raise UserError(
                f"{file}: weights '{name}' are {tensor.dtype} {tuple(tensor.shape)}; "
                f"the sizes in {POLICY_FILE} need {parameter.dtype} {tuple(parameter.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{file}: weights '{name}' are not finite: the training had diverged")
