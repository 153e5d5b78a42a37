"""The trackers of a run, as one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolagent import __version__
from toolagent.checkpoints.run_files import TrackerRecords, read_file
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli import brief
from toolagent.errors import UserError, labelled
from toolagent.files import write_atomically
from toolagent.trackers.base import FAILED, INTERRUPTED, RunDescription, Tracker
from toolagent.trackers.metrics import metrics_of, rllib_metrics, summary_metrics
from toolagent.trackers.mlflow import MLflow
from toolagent.trackers.outbox import Outbox
from toolagent.trackers.tensorboard import TensorBoard
from toolagent.trackers.wandb import WeightsAndBiases

TRACKERS = "trackers.json"  # in the run's folder: which record is this run's, by tracker


class Trackers:
    """A context manager around a session of a run.

    Entering checks that every tracker can be used and writes nothing; `start` begins the records.
    Leaving without `end` marks the run there as failed, or as interrupted on Ctrl-C.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder):
        self.folder = folder
        self._file = folder.path / TRACKERS
        make = {"tensorboard": lambda: TensorBoard(folder.tensorboard)}
        make |= {"mlflow": MLflow, "wandb": WeightsAndBiases}
        self._trackers: list[Tracker] = [make[name]() for name in names]
        self._outboxes: list[Outbox] = []
        self._identifiers: dict[str, str] = {}
        self._all_of_rllib = False

    def __enter__(self) -> Trackers:
        if self._file.exists():  # of the run's earlier sessions
            with labelled("run.trackers: remove it to begin new records: "):
                self._identifiers = read_file(self._file, TrackerRecords)
        for tracker in self._trackers:
            tracker.check(self._identifiers.get(tracker.name))
        return self

    def start(self, document: dict[str, Any], **tags: str) -> None:
        """Begins each record, or goes on with it if the run has one.

        Args:
            document: the resolved configuration.
            tags: further facts about the run.

        Raises:
            UserError: a tracker refuses.
        """
        self._all_of_rllib = bool(document["run"].get("rllib_figures"))
        tags = {"toolagent_version": __version__, **tags}
        run = RunDescription(self.folder.path.resolve().name, self.folder.path, document, tags)
        for tracker in self._trackers:
            try:
                identifier = tracker.start(run, self._identifiers.get(tracker.name))
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"run.trackers: {tracker.name}: {brief(error)}") from None
            self._outboxes.append(Outbox(tracker))
            if identifier is not None:
                self._identifiers[tracker.name] = identifier
        if self._identifiers:
            text = json.dumps(self._identifiers, indent=2) + "\n"
            write_atomically(self._file, text.encode())

    def log(self, row: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """One iteration: a row of `progress.jsonl`, and the RLlib result that it was made of."""
        if self._outboxes:
            more = rllib_metrics(result) if self._all_of_rllib else {}
            figures = metrics_of(row), more, row["env_steps"]
            for outbox in self._outboxes:
                outbox.put(figures)

    def go_back(self, env_steps: int) -> None:
        """The run continues from that env step: figures of later iterations are void."""
        for outbox in self._outboxes:
            try:
                outbox.tracker.go_back(env_steps)
            except Exception as error:
                outbox.warn(error)

    def end(self, status: str, summary: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Ends the records; without a summary it is {}. Files that are missing are left out."""
        present = {name: path for name, path in files.items() if path.is_file()}
        outboxes, self._outboxes = self._outboxes, []
        for outbox in outboxes:
            outbox.close()
            try:
                outbox.tracker.end(status, present, summary_metrics(summary) if summary else {})
            except Exception as error:
                outbox.warn(error)
            if outbox.lost:
                print(
                    f"warning: {outbox.tracker.name}: the figures of {outbox.lost:,} iterations "
                    f"were not taken; they are in {self.folder.progress}",
                    file=sys.stderr,
                )

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.end(INTERRUPTED if interrupted else FAILED, {}, {})


def result_files(folder: RunFolder, checkpoint: Path) -> dict[str, Path]:
    """The result files that are uploaded with the figures; none is a pickle."""
    files = [folder.summary, folder.config, folder.environment, folder.report]
    return {path.name: path for path in files} | {
        f"checkpoint/{name}": checkpoint / name for name in ("policy.json", "model.safetensors")
    }
