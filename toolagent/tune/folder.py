"""The folder of a search: what lies where."""

from __future__ import annotations

import os
from pathlib import Path

from toolagent.checkpoints.run_files import SearchSummary, read_file
from toolagent.checkpoints.run_folder import BASE, SEARCH, new_folder
from toolagent.checkpoints.storage import is_uri
from toolagent.errors import UserError, quoted
from toolagent.files import folder_fault, lock_folder, write_atomically

TRIALS = "trials"


class SearchFolder:
    """`DIR` of `python -m toolagent.tune --output-dir DIR`."""

    def __init__(self, path: Path):
        self.path = path
        self.earlier_s = 0.0  # of sessions before, as far as they ended by themselves or by Ctrl-C
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
    def new(cls, given: str | None, task: str) -> SearchFolder:
        """A folder for a new search, not made yet; by default `runs/tune-<task>-<time>`.

        Raises:
            UserError: it holds something already, or can't be used.
        """
        path = None if given is None else _path("--output-dir", given)
        # os.path.exists: False, not an exception, for a path that can't be one.
        advice = None
        if path is not None and os.path.exists(path / SEARCH):
            advice = f"continue with --resume {quoted(path)}"
        path = new_folder(path, f"tune-{task}", advice)
        return cls(_path("--output-dir", str(path)))

    @classmethod
    def existing(cls, given: str) -> SearchFolder:
        """The folder of a search to be resumed, locked.

        Raises:
            UserError: there is no search in it, or another one is at work in it.
        """
        path = _path("--resume", given)
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
        lock_folder(path, folder, "--resume", "search")
        if folder.summary.exists():
            folder.earlier_s = read_file(folder.summary, SearchSummary).wall_time_s
        return folder

    def make(self, search: str, base: str) -> None:
        """Makes and locks the folder, and writes what the search is.

        Raises:
            UserError: it can't be written, or another search is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock_folder(self.path, self, "--output-dir", "search")
            write_atomically(self.base, base.encode())
            write_atomically(self.search, search.encode())
        except OSError as error:
            raise UserError(
                f"--output-dir {self.path}: can't be written ({error.strerror})"
            ) from None


def _path(flag: str, given: str) -> Path:
    """Trials write beside each other into one folder, from whatever node they run on."""
    if not given:
        raise UserError(f"{flag}: is empty; name a folder")
    if is_uri(given):
        raise UserError(
            f"{flag} {given}: a search needs a path; on a cluster, a path that all nodes mount"
        )
    try:
        os.path.realpath(given).encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag} {given}: is not UTF-8, as Ray Tune needs it") from None
    return Path(given)
