"""Weights & Biases, online or offline.

Its own variables set the destination and the mode: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE,
WANDB_API_KEY and so on.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolagent.cli import brief, one_line
from toolagent.errors import UserError
from toolagent.installation import install_command
from toolagent.trackers.base import FINISHED, INTERRUPTED, RunDescription, Tracker

DEFAULT_PROJECT = "toolagent"
_INIT_TIMEOUT_S = 30.0
_MODES = ("online", "offline", "disabled", "shared")


class WeightsAndBiases(Tracker):
    """A run in W&B, through its client; its files lie in `DIR/wandb` unless WANDB_DIR is set."""

    name = "wandb"

    def __init__(self) -> None:
        self._run: Any = None

    def check(self, resumed: str | None) -> None:
        """The package, the mode, and a key where one is needed."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"run.trackers: wandb is not installed; {install_command('wandb')}"
            ) from None
        mode = os.environ.get("WANDB_MODE", "online")
        if mode not in _MODES:
            raise UserError(
                f"run.trackers: WANDB_MODE is {one_line(mode)}; expected one of {', '.join(_MODES)}"
            )
        if mode in ("online", "shared") and not wandb.api.api_key:
            raise UserError(
                "run.trackers: wandb has no API key; set WANDB_API_KEY, run `wandb login`, or set "
                "WANDB_MODE=offline"
            )

    def start(self, run: RunDescription, resumed: str | None) -> str:
        """Begins the run, or goes on with it: its identifier makes it the same."""
        import wandb

        identifier = resumed or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
                id=identifier,
                name=os.environ.get("WANDB_NAME", run.name),
                resume="allow",
                dir=os.environ.get("WANDB_DIR", str(run.folder.resolve())),
                config=run.document,
                tags=[f"task:{run.document['task']}", f"algorithm:{run.document['algorithm']}"],
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=_INIT_TIMEOUT_S, x_disable_stats=True
                ),
            )
        except Exception as error:
            raise UserError(
                f"run.trackers: wandb can't be started ({brief(error)}); or set WANDB_MODE=offline"
            ) from None
        self._run.config.update({f"about.{k}": v for k, v in run.tags.items()}, True)
        self._run.define_metric("*", step_metric="env_steps")
        return identifier

    def log(self, metrics: Mapping[str, float], more: Mapping[str, float], step: int) -> None:
        """Hands the figures to the client, which writes and uploads by itself."""
        self._run.log({**metrics, "env_steps": step}, step=step)

    def end(self, status: str, files: Mapping[str, Path], summary: Mapping[str, float]) -> None:
        """Adds the files as one artifact and ends the run."""
        import wandb

        try:
            for name, value in summary.items():
                self._run.summary[name] = value
            self._run.summary["status"] = status
            if files:
                artifact = wandb.Artifact(f"run-{self._run.id}", type="model")
                for name, path in files.items():
                    artifact.add_file(str(path), name)
                self._run.log_artifact(artifact)
        finally:
            self._run.finish(exit_code={FINISHED: 0, INTERRUPTED: 130}.get(status, 1))
