"""Keeps a copy of a run's folder on storage while the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from toolagent.checkpoints.storage import CHECKPOINTS, LAST_FILES, Storage, StorageError

_AFTER_ALL = "summary.json"  # it names a checkpoint
_LAST_COPY_S = 5.0  # for a copy under way that has nothing left to send

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns


class Mirror:
    """Copies what is new in a folder to storage, in a thread: training does not wait for it.

    A failure is reported once; the copy is tried again at the next checkpoint and at the end. The
    folder itself always has everything.

    Args:
        folder: on this machine.
        storage: the copy.
        tell: takes one line for the user.
    """

    def __init__(self, folder: Path, storage: Storage, tell: Callable[[str], None]):
        self.folder = folder
        self.storage = storage
        self._tell = tell
        self._sent: dict[str, Stamp] = {}
        self._failed = False
        self._wanted = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def note_all_sent(self) -> None:
        """The folder was just fetched from the storage: all of it is there."""
        self._sent = self._stamps(self.folder)

    def request(self) -> None:
        """Starts copying what is new; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")
            self._thread.start()
        self._wanted.set()

    def pending(self) -> bool:
        """Whether there is anything in the folder that the storage has not, as it is."""
        return not self._stamps(self.folder).items() <= self._sent.items()

    def finish(self) -> str | None:
        """Copies what is still missing, and ends.

        Returns:
            None if all is there, or why not.
        """
        self._end_thread(None)
        try:
            self.copy()
        except StorageError as error:
            return str(error)
        return None

    def end(self) -> bool:
        """Ends without copying more than is under way; True if all is there and the folder may go:
        to a copy that still runs, checkpoints that are gone would be ones to remove."""
        if self.pending():
            return False
        self._end_thread(_LAST_COPY_S)
        return (self._thread is None or not self._thread.is_alive()) and not self.pending()

    def _end_thread(self, timeout: float | None) -> None:
        self._ended = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def copy(self) -> None:
        """Copies what is new, in an order in which a copy that was cut short can be continued from.

        First what a checkpoint needs, then checkpoints, each with the file that completes it last,
        then what is gone is removed, and last what names a checkpoint.

        Raises:
            StorageError: the storage fails.
        """
        inside = _children(self.folder / CHECKPOINTS)  # before the rows that they continue from
        names = [path.name for path in inside if path.is_dir() and not path.is_symlink()]
        summary = self.folder / _AFTER_ALL
        for path in _files(self.folder):
            if path != summary and not path.is_relative_to(self.folder / CHECKPOINTS):
                self._send(path)
        for name in names:
            self._send_checkpoint(name)
        for path in inside:
            if path.is_file():
                self._send(path)
        for name in self.storage.checkpoints():
            if name not in names:
                self._remove(name)
        self._send(summary)

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._ended:
                return
            try:
                self.copy()
            except StorageError as error:
                if not self._failed:
                    self._tell(
                        f"{self.storage.name} can't be written ({error}); the run goes on, its "
                        f"results are in {self.folder}"
                    )
                self._failed = True
            else:
                if self._failed:
                    self._tell(f"{self.storage.name} can be written again")
                self._failed = False

    def _send_checkpoint(self, name: str) -> None:
        """Sends a checkpoint unless it is there; one that has changed is sent anew as a whole."""
        prefix = f"{CHECKPOINTS}/{name}/"
        before = {key: stamp for key, stamp in self._sent.items() if key.startswith(prefix)}
        stamps = self._stamps(self.folder / CHECKPOINTS / name)
        if stamps == before:
            return
        if before:
            self._remove(name)
        last = next((prefix + file for file in LAST_FILES if prefix + file in stamps), None)
        for key in sorted(stamps, key=lambda key: key == last):
            if not self._send(self.folder / key):
                return  # it was removed meanwhile: what was sent of it goes too

    def _send(self, path: Path) -> bool:
        """Sends a file if it has changed; False if it is gone."""
        key, stamp = self._key(path), _stamp(path)
        if stamp is None:
            return False
        if self._sent.get(key) == stamp:
            return True
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return False
        self._sent.pop(key, None)
        self.storage.write(key, data)
        self._sent[key] = stamp
        return True

    def _remove(self, name: str) -> None:
        self.storage.remove_checkpoint(name)
        prefix = f"{CHECKPOINTS}/{name}/"
        self._sent = {key: stamp for key, stamp in self._sent.items() if not key.startswith(prefix)}

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _stamps(self, folder: Path) -> dict[str, Stamp]:
        """Of all files below a folder, by key."""
        stamps = {self._key(path): _stamp(path) for path in _files(folder)}
        return {key: stamp for key, stamp in stamps.items() if stamp is not None}


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _children(folder: Path) -> list[Path]:
    """Without hidden ones, which are not finished yet."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """All files below, but hidden ones and those in hidden folders."""
    try:
        children = _children(folder)
    except FileNotFoundError:
        return  # removed meanwhile
    for path in children:
        if path.is_dir():
            if not path.is_symlink():
                yield from _files(path)
        elif path.is_file():
            yield path
