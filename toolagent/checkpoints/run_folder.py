"""The folder of a run: what lies where, and writing it so that a reader never sees half a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from toolagent.checkpoints.mirror import Mirror
from toolagent.checkpoints.run_files import (
    Behaviour,
    Environment,
    Summary,
    as_document,
    read_file,
    read_rows,
    written,
)
from toolagent.errors import UserError, labelled, quoted
from toolagent.files import append, folder_fault, lock_folder, write_atomically

CONFIG = "config.yaml"
PROGRESS = "progress.jsonl"
SUMMARY = "summary.json"
ENVIRONMENT = "environment.json"
BEHAVIOUR = "behaviour.json"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
# Of several runs: what lies in the folder around theirs.
SEEDS = "seeds.json"
BASE = "base.yaml"  # what they have in common, as of the trials of a search
SEARCH = "search.yaml"
_ORIGIN = "init-from.txt"  # in CHECKPOINTS; goes along to storage


def new_folder(path: Path | None, name: str, otherwise: str | None) -> Path:
    """A folder that a command may write its results to; not made yet.

    Args:
        path: what was asked for; None: `runs/<name>-<time>`, or the next that is free.
        name: begins the folder's name.
        otherwise: what can be done instead where the folder is not empty; None: nothing.

    Raises:
        UserError: it holds something already, or can't be read or written.
    """
    if path is None:
        stem = Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
        path, number = stem, 1
        while path.exists():
            number += 1
            path = stem.with_name(f"{stem.name}-{number}")
        return path
    with labelled(f"--output-dir {path}: can't be used: ", OSError):
        if path.is_dir() and any(path.iterdir()):
            advice = f", or {otherwise}" if otherwise else ""
            raise UserError(f"--output-dir {path}: is not empty; name a new folder{advice}")
        if fault := folder_fault(path):
            raise UserError(f"--output-dir {path}: {fault}")
    return path


def holds_seeds(folder: str | Path) -> bool:
    """Whether the folder is one of several seeds' runs, as `run --seeds` makes it."""
    return os.path.isfile(os.path.join(folder, SEEDS))


class RunFolder:
    """`DIR` of `python -m toolagent.run --output-dir DIR`.

    Args:
        path: on this machine.
        mirror: copies it to the storage that the user named, if it was a URI.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None):
        self.path = path
        self.mirror = mirror
        self.config = path / CONFIG
        self.progress = path / PROGRESS
        self.summary = path / SUMMARY
        self.checkpoints = path / CHECKPOINTS
        self.tensorboard = path / "tensorboard"
        self.learning_curve = path / "learning_curve.png"
        self.environment = path / ENVIRONMENT
        self.behaviour = path / BEHAVIOUR
        self.report = path / REPORT
        self.profile = path / "profile.json"
        self.profile_table = path / "profile.txt"
        self._waiting = ""  # rows of progress that could not be written yet

    @classmethod
    def new(cls, path: Path | None, task: str) -> RunFolder:
        """As `new_folder`, for a run."""
        return cls(new_folder(path, task, f"continue that run with --resume {quoted(path or '')}"))

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.mirror.storage.name if self.mirror else str(self.path)

    @property
    def report_name(self) -> str:
        """What the user calls the page: `s3://bucket/first/report.html?region=...` on storage."""
        return self.mirror.storage.name_of(REPORT) if self.mirror else str(self.report)

    def share(self) -> None:
        """What is new is copied to the storage, if there is one; returns at once."""
        if self.mirror is not None:
            self.mirror.request()

    def make(self, config: str, resumed: bool = False) -> None:
        """Makes the folder, or takes up that of a resumed run, and writes the fully resolved
        configuration into it.

        Raises:
            UserError: it can't be written.
        """
        flag = "--resume" if resumed else "--output-dir"
        with labelled(f"{flag} {self.path}: can't be written: ", OSError):
            self.path.mkdir(parents=True, exist_ok=True)
            if not resumed:  # a resumed one's is locked already
                self.lock("--output-dir")
            # First: killed before, the folder is as good as new.
            write_atomically(self.config, config.encode())
            self.checkpoints.mkdir(exist_ok=True)

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of a run to be resumed.

        Raises:
            UserError: there is no run in it.
        """
        folder = cls(path)
        if not path.is_dir():
            raise UserError(f"--resume {path}: there is no such folder")
        if not folder.config.is_file():
            raise UserError(f"--resume {path}: holds no run (no {CONFIG})")
        if fault := folder_fault(path):
            raise UserError(f"--resume {path}: {fault}")
        return folder

    @classmethod
    def to_resume(cls, path: Path) -> tuple[RunFolder, Path | None]:
        """The folder of a run, and the checkpoint in it if the path is that of a checkpoint.

        Raises:
            UserError: neither is there.
        """
        absolute = path.absolute()
        if absolute.parent.name == CHECKPOINTS and not (path / CONFIG).exists():
            run = cls(absolute.parent.parent)
            if run.config.is_file():
                if not path.is_dir():
                    raise UserError(f"--resume {path}: there is no such checkpoint")
                return cls.existing(path.parent.parent), path
        return cls.existing(path), None

    def lock(self, label: str) -> None:
        """Keeps the folder for this process until it ends.

        Raises:
            UserError: another run is at work in it.
        """
        lock_folder(self.path, self, label, "run")

    def note_origin(self, policy: Path) -> None:
        """Notes where the weights came from: until the first checkpoint nothing else says it."""
        (self.checkpoints / _ORIGIN).write_text(f"{policy}\n", encoding="utf-8")

    def check_origin(self) -> None:
        """Raises UserError for a run without a checkpoint that began with another one's weights."""
        if (self.checkpoints / _ORIGIN).exists():
            raise UserError(
                f"--resume {self.path}: it has no checkpoint yet, and its first weights came from "
                "--init-from; start it anew"
            )

    def append_progress(self, row: dict[str, Any]) -> str | None:
        """One row an iteration; a row is one write, so a killed run tears at most the last.

        Returns:
            Why it could not be written; it is kept then, and written with the next. Else None.
        """
        self._waiting += json.dumps(row) + "\n"
        try:
            self._append()
        except OSError as error:
            return f"{error.strerror or error}"
        return None

    def sync_progress(self) -> None:
        """Waits until all rows so far are on the disk.

        Raises:
            OSError: they can't be written.
        """
        self._append()
        with open(self.progress, "rb") as file:
            os.fsync(file.fileno())

    def _append(self) -> None:
        """Writes the rows that wait: all of them or, with an OSError, none."""
        append(self.progress, self._waiting.encode())
        self._waiting = ""

    def cut_progress(self, iteration: int) -> list[dict[str, Any]]:
        """Keeps the rows up to an iteration (what a resumed run continues from) and returns them.

        A last line that a kill cut off is dropped; so are rows that wait to be written: they are
        later than any checkpoint.
        """
        self._waiting = ""
        lines = self.progress.read_bytes().splitlines(True) if self.progress.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        kept = [row for row in rows if row["iteration"] <= iteration]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.progress, text.encode())
        return kept

    def add_environment(self, session: dict[str, Any]) -> None:
        """Where the run ran: one entry a session, as a resumed run has several."""
        sessions = as_document(self._read_environment()).get("sessions", [])
        document = {"sessions": [*sessions, session]}
        write_atomically(self.environment, written(document, Environment))

    def check_files(self) -> None:
        """Reads what a resumed run goes on with, before anything is started.

        Raises:
            UserError: a file is not what a run writes.
        """
        if self.progress.exists():
            for _ in read_rows(self.progress):
                pass
        self._read_environment()

    def _read_environment(self) -> Environment:
        if not self.environment.exists():
            return Environment()
        return read_file(self.environment, Environment)

    def write_behaviour(self, behaviour: dict[str, Any]) -> None:
        """What the final greedy agent does (`run.results.behaviour`)."""
        write_atomically(self.behaviour, written(behaviour, Behaviour, indent=None))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """The results of the run (`toolagent.run.results`)."""
        write_atomically(self.summary, written(summary, Summary))
