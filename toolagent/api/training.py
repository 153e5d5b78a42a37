"""`toolagent.train`: what `python -m toolagent.run` does, from a program or a notebook."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolagent import cli
from toolagent.api.threads import one_torch_thread
from toolagent.cli.interrupt import interruptible
from toolagent.errors import UserError
from toolagent.run.launch import Request, launch, override, shorthand_overrides


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: Path | str  # its URI, as text, if it was written to storage
    summary: dict[str, Any] = field(repr=False)  # what `summary.json` holds
    checkpoint: Path | str  # the last one, for `load_agent` and `certify`; as `folder`


def train(
    config: str | os.PathLike[str] = "default",
    *,
    output_dir: str | os.PathLike[str] | None = None,
    num_env_runners: int | str | None = None,
    seed: int | None = None,
    stop_env_steps: int | None = None,
    stop_time_s: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Trains an agent through the curriculum, as `python -m toolagent.run` does.

    It prints the same, and begins and ends Ray itself: the program must not have called
    `ray.init()`, or must have called `ray.shutdown()` since. Where `RAY_ADDRESS` is set, it joins
    that cluster. Trainings can follow each other; two at a time need two processes.

    Args:
        config: a YAML file, or the name of a shipped config.
        output_dir: new folder for results, also a URI (`s3://...`). Default: `runs/<task>-<time>`.
        num_env_runners: processes that play episodes; "auto": as the cluster has CPUs for.
        seed: of everything.
        stop_env_steps: stop after so many env steps.
        stop_time_s: stop after so many seconds of training.
        overrides: any configuration value by its place: `{"training.lr": 1e-3}`. As with `--set`,
            which error messages call it. The arguments above win.

    Raises:
        UserError: whatever the command refuses with exit code 2; nothing is trained then.
        RuntimeError: the command's exit code 1: nothing was trained, or not all results could be
            written. What was wrong is in the message.
        KeyboardInterrupt: interrupted (Ctrl-C, a notebook's stop button, SIGTERM). What was
            trained is in the folder's last checkpoint; `python -m toolagent.run --resume FOLDER`
            goes on from there. A second Ctrl-C ends at once, without the last checkpoint.
            Signals reach only a training in the program's main thread.
    """
    if not isinstance(overrides or {}, Mapping):
        raise UserError(f"overrides is {overrides!r:.60}; expected such as {{'training.lr': 1e-3}}")
    shorthands = shorthand_overrides(
        num_env_runners=num_env_runners,
        seed=seed,
        stop_env_steps=stop_env_steps,
        stop_time_s=stop_time_s,
    )
    request = Request(
        config=_path("config", config),
        output_dir=None if output_dir is None else _path("output_dir", output_dir),
        address=os.environ.get("RAY_ADDRESS") or None,
        overrides=(
            *(override(key, value) for key, value in (overrides or {}).items()),
            *shorthands,
        ),
    )
    # All that the command may change in its process is restored.
    with warnings.catch_warnings(), one_torch_thread(), interruptible(), cli.file_faults():
        result = launch(request, cli.console())
    name = result.folder.name
    if result.exit_code == cli.EXIT_INTERRUPTED:
        raise KeyboardInterrupt(f"the run in {name} was interrupted; its last checkpoint is there")
    if result.exit_code or result.summary is None:
        raise RuntimeError("; ".join(result.faults) or f"the results of {name} are not complete")
    checkpoint = result.summary["checkpoint"]
    if result.folder.mirror is not None:
        return Run(name, result.summary, f"{name}/{checkpoint}")
    return Run(result.folder.path, result.summary, result.folder.path / checkpoint)


def _path(argument: str, given: Any) -> str:
    """The path as text, with the home folder written out."""
    if not isinstance(given, (str, os.PathLike)):
        raise UserError(f"{argument} is {given!r:.60}; expected a path, or a name as text")
    return os.path.expanduser(os.fspath(given))
