"""The folder of a search: what lies where."""

from __future__ import annotations

import os
from pathlib import Path

from toolagent.checkpoints.run_folder import new_folder
from toolagent.errors import UserError, quoted
from toolagent.files import folder_fault, lock_folder, write_atomically

SEARCH, BASE, TRIALS = "search.yaml", "base.yaml", "trials"


class SearchFolder:
    """`DIR` of `python -m toolagent.tune --output-dir DIR`."""

    def __init__(self, path: Path):
        self.path = path
        self.search = path / SEARCH
        self.base = path / BASE
        self.trials = path / TRIALS  # Tune's own folder, a folder a trial in it
        self.summary = path / "summary.json"
        self.best_config = path / "best_config.yaml"
        self.table = path / "trials.csv"
        self.learning_curves = path / "learning_curves.png"
        self.parallel_coordinates = path / "parallel_coordinates.png"
        self.importance = path / "importance.png"

    @classmethod
    def new(cls, path: Path | None, task: str) -> SearchFolder:
        """A folder for a new search, not made yet; by default `runs/tune-<task>-<time>`.

        Raises:
            UserError: it holds something already, or can't be used.
        """
        # os.path.exists: False, not an exception, for a path that can't be one.
        advice = None
        if path is not None and os.path.exists(path / SEARCH):
            advice = f"continue with --resume {quoted(path)}"
        return cls(new_folder(path, f"tune-{task}", advice))

    @classmethod
    def existing(cls, path: Path) -> SearchFolder:
        """The folder of a search to be resumed.

        Raises:
            UserError: there is no search in it.
        """
        folder = cls(path)
        if not path.is_dir():
            raise UserError(f"--resume {path}: there is no such folder")
        for file in (folder.search, folder.base):
            if not file.is_file():
                hint = ""
                if (path / "config.yaml").is_file():
                    hint = (
                        f"; a run is continued by python -m toolagent.run --resume {quoted(path)}"
                    )
                raise UserError(f"--resume {path}: holds no search (no {file.name}){hint}")
        if fault := folder_fault(path):
            raise UserError(f"--resume {path}: {fault}")
        return folder

    def lock(self, label: str) -> None:
        """Keeps the folder for this process until it ends.

        Raises:
            UserError: another search is at work in it.
        """
        lock_folder(self.path, self, label, "search")

    def make(self, search: str, base: str) -> None:
        """Makes and locks the folder, and writes what the search is.

        Raises:
            UserError: it can't be written, or another search is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock("--output-dir")
            write_atomically(self.base, base.encode())
            write_atomically(self.search, search.encode())
        except OSError as error:
            raise UserError(
                f"--output-dir {self.path}: can't be written ({error.strerror})"
            ) from None
