"""Where a run writes to: a folder, or a folder that is copied to storage as it grows."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from toolagent.checkpoints.mirror import Mirror
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.storage import CHECKPOINTS, Storage, is_uri, renamed
from toolagent.errors import UserError

_OUTPUT, _RESUME = "--output-dir", "--resume"


@contextlib.contextmanager
def new_run(given: str | None, task: str, tell: Callable[[str], None]) -> Iterator[RunFolder]:
    """The folder of a new run, not made yet; by default `runs/<task>-<time>`.

    Raises:
        UserError: it holds something already, or can't be written.
    """
    if given == "":
        raise UserError(f"{_OUTPUT}: is empty; name a folder, or leave it out")
    if given is None or not is_uri(given):
        yield RunFolder.new(Path(given) if given else None, task)
        return
    storage = Storage.at(given, _OUTPUT)
    storage.check_new(_OUTPUT)
    with _staged(storage, tell) as folder:
        yield folder


@contextlib.contextmanager
def run_to_resume(
    given: str, tell: Callable[[str], None]
) -> Iterator[tuple[RunFolder, Path | None]]:
    """The folder of an earlier run; from storage, a copy that is copied back as it grows. And the
    checkpoint in it, where a path names one.

    Raises:
        UserError: there is no run, or it can't be read or written.
    """
    if not is_uri(given):
        yield RunFolder.to_resume(Path(given))
        return
    checkpoint, parts = None, urlsplit(given)
    path = PurePosixPath(parts.path)
    if path.parent.name == CHECKPOINTS:
        given = urlunsplit(parts._replace(path=str(path.parent.parent)))
        checkpoint = path.name
    storage = Storage.at(given, _RESUME)
    original = RunFolder(storage.local) if storage.local is not None else None
    if original is not None and original.path.is_dir():
        original.lock(_RESUME)  # until the end of this block; other storage has no locks
    with _staged(storage, tell, fetch=True) as folder:
        RunFolder.existing(folder.path)
        named = folder.checkpoints / checkpoint if checkpoint else None
        if named is not None and not named.is_dir():
            raise UserError(f"{_RESUME} {named}: there is no such checkpoint")
        storage.check_writable(_RESUME)
        yield folder, named
    del original


@contextlib.contextmanager
def _staged(
    storage: Storage, tell: Callable[[str], None], fetch: bool = False
) -> Iterator[RunFolder]:
    """A folder on this machine; it goes when the storage has all of it, and stays otherwise.

    However the block ends, what is in the folder by then is copied; not on KeyboardInterrupt.

    Args:
        storage: what it is copied to.
        tell: takes one line for the user, if the storage fails in mid-run.
        fetch: it begins as a copy of what is there.
    """
    path = Path(tempfile.mkdtemp(prefix="toolagent-"))
    mirror = Mirror(path, storage, tell)
    if fetch:
        try:
            with renamed(path, storage):
                storage.fetch(path, _RESUME)
            mirror.note_all_sent()
        except BaseException:  # half a copy must never be copied back: it lacks checkpoints
            shutil.rmtree(path, ignore_errors=True)
            raise
    folder = RunFolder(path, mirror)
    try:
        with renamed(path, storage):
            yield folder
    except KeyboardInterrupt:  # not a moment more
        raise
    except BaseException:
        finish(folder)
        raise
    finally:
        if mirror.end():
            shutil.rmtree(path, ignore_errors=True)


def finish(folder: RunFolder) -> bool:
    """Everything to the storage, if there is one; False, and a line on stderr, if that fails."""
    if folder.mirror is None or not folder.mirror.pending():
        return True
    fault = folder.mirror.finish()
    if fault is not None:
        print(
            f"error: {folder.name} can't be written ({fault}); the results are in {folder.path}",
            file=sys.stderr,
            flush=True,
        )
    return fault is None
