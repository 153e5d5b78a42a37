"""MLflow: parameters, metrics and results on a tracking server, or in a local database.

MLflow's own variables set the destination: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
MLFLOW_TRACKING_TOKEN and so on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from toolagent.cli import one_line
from toolagent.errors import UserError
from toolagent.installation import install_command
from toolagent.trackers.base import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RunDescription,
    Tracker,
)
from toolagent.trackers.metrics import flat_parameters

DEFAULT_EXPERIMENT = "toolagent"
_STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
_MAX_VALUE = 500  # characters of a parameter that every server takes
_BATCH = 100  # parameters a request
# Unless the user says otherwise: a server that does not answer is noticed in seconds, not minutes.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MLflow(Tracker):
    """A run in MLflow, through its client."""

    name = "mlflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def check(self, resumed: str | None) -> None:
        """Checks that the server answers."""
        try:
            from mlflow import MlflowClient
            from mlflow.tracking import get_tracking_uri
        except ImportError:
            raise UserError(
                f"run.trackers: mlflow is not installed; {install_command('mlflow')}"
            ) from None
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        where = _without_secrets(get_tracking_uri())
        try:
            self._client = MlflowClient()
            self._client.search_experiments(max_results=1)
        except Exception as error:
            raise UserError(
                f"run.trackers: mlflow can't be used at {where} ({_short(error)}); start that "
                "server or set MLFLOW_TRACKING_URI"
            ) from None
        if resumed is not None:
            try:
                self._client.get_run(resumed)
            except Exception as error:
                raise UserError(
                    f"run.trackers: mlflow at {where} has not this run's record {resumed} "
                    f"({_short(error)}); set MLFLOW_TRACKING_URI as it was"
                ) from None

    def start(self, run: RunDescription, resumed: str | None) -> str:
        """Creates the run, or sets the resumed one to RUNNING, and writes the parameters."""
        from mlflow.entities import Param, RunTag

        parameters = {
            _key(name): value[:_MAX_VALUE] for name, value in flat_parameters(run.document).items()
        }
        tags = dict(run.tags)
        if resumed is None:
            created = self._client.create_run(
                self._experiment_id(), run_name=run.name, tags={"mlflow.source.name": "toolagent"}
            )
            self._run_id = created.info.run_id
        else:
            self._run_id = resumed
            self._client.update_run(resumed, status="RUNNING")
            # A parameter is written once; what the resumed run changed becomes a tag.
            before = self._client.get_run(resumed).data.params
            for name in [name for name in parameters if name in before]:
                value = parameters.pop(name)
                if value != before[name]:
                    tags[f"resumed.{name}"] = value
        written = [Param(name, value) for name, value in parameters.items()]
        for first in range(0, len(written), _BATCH):
            self._client.log_batch(self._run_id, params=written[first : first + _BATCH])
        self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in tags.items()])
        return self._run_id

    def log(self, metrics: Mapping[str, float], more: Mapping[str, float], step: int) -> None:
        """One request; RLlib's other figures are left out, they would be most of the traffic."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(_key(name), value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=batch)

    def end(self, status: str, files: Mapping[str, Path], summary: Mapping[str, float]) -> None:
        """Uploads the files and sets the status."""
        try:
            if summary:
                self.log(summary, {}, int(summary["summary/env_steps"]))
            for name, path in files.items():
                folder = str(Path(name).parent)
                self._client.log_artifact(
                    self._run_id, str(path), None if folder == "." else folder
                )
        finally:
            self._client.set_terminated(self._run_id, _STATUS[status])

    def _experiment_id(self) -> str:
        """The user's experiment, or `toolagent`; made if it is missing."""
        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)


def _key(name: str) -> str:
    """A name with the characters that MLflow accepts."""
    kept = (c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name)
    return "".join(kept)[:250]


def _without_secrets(uri: str) -> str:
    """The address without a user's name and password."""
    parts = urlsplit(uri)
    return one_line(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def _short(error: Exception) -> str:
    """The error's class and the start of its message, without addresses (passwords)."""
    text = one_line(error)
    return type(error).__name__ + ("" if "://" in text else f": {text[:80]}")
