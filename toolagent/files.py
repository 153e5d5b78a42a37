"""Writing files: whole or not at all in folders of ours, and to whatever a user names."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import sys
import weakref
from pathlib import Path

from toolagent.errors import UserError

# The file itself can be written, but no other put in its place: its folder is read-only or
# sticky, or the file is a mount of its own, as containers have them.
_NOT_REPLACEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


def write_atomically(path: Path, data: bytes) -> None:
    """Puts a file in place whole or not at all, also if the machine stops in between.

    What has that name is replaced, a link too; the mode of a regular file is kept.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: names have a limit
    mode = None
    with contextlib.suppress(FileNotFoundError):
        before = path.lstat().st_mode
        mode = stat.S_IMODE(before) if stat.S_ISREG(before) else None
    try:
        write_synced(temporary, data, mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # the rename itself is in the folder


def write_synced(path: Path, data: bytes, mode: int | None = None) -> None:
    """Writes a new file and waits until it is on the disk.

    Raises:
        OSError: it is there already, the disk is full, the folder is read-only, ...
    """
    with open(path, "xb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the folder's own entries, so the names in it, are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Adds to a file, which is made if it is missing, in one write: all of it or nothing.

    Raises:
        OSError: it can't be written, and nothing of it is in the file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def write_result(path: Path, data: bytes) -> None:
    """Writes a file that a user named, leaving what the name stands for what it is.

    A regular file is replaced atomically and keeps its mode; through a link, the file that it
    leads to. A device, a FIFO or an open file of this process (`/dev/stdout`) is written to.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if is_stream(path):
            _write_in_place(path, data)
            return
        target = Path(os.path.realpath(path))
        try:
            write_atomically(target, data)
        except OSError as error:
            if error.errno not in _NOT_REPLACEABLE or not target.exists():
                raise
            _write_in_place(target, data)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror})") from error


def check_writable(path: Path, label: str) -> None:
    """Refuses, before any work is done, a file that `write_result` could not write.

    Args:
        path: the file; need not exist.
        label: the option that named it, such as `--json`.

    Raises:
        UserError: it is a folder, a socket or a disk, its folder is missing, or permission is.
    """
    if fault := _file_fault(path):
        raise UserError(f"{label} {path}: {fault}")


def folder_fault(path: Path) -> str | None:
    """Why no file can be written into a folder, which is made if it is missing; None if it can.

    Raises:
        OSError: the path can't be one, or leads through a folder that can't be read.
    """
    nearest = path
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        what = "a link to nothing" if nearest.is_symlink() and not nearest.exists() else "a file"
        return f"{nearest} is {what}; name a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"can't be written (no permission to write in '{nearest}')"
    return None


def lock_folder(path: Path, owner: object, label: str, work: str) -> None:
    """Locks a folder for as long as its owner and this process live; a kill leaves nothing behind.

    A file system without locks is used without one.

    Args:
        path: of the folder.
        owner: the lock is released when this object is garbage collected.
        label: the option that named the folder, such as `--resume`.
        work: what the lock keeps out, such as `run`.

    Raises:
        UserError: another process, or another owner, has locked it, or it can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{label} {path}: can't be read ({error.strerror})") from None
    weakref.finalize(owner, os.close, descriptor)
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{label} {path}: a {work} is at work in it; stop that first") from None


def is_stream(path: Path) -> bool:
    """Whether the name stands for something to write to that is no file of its own."""
    try:
        found = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return True
    # A name of an open file. Another file in its place would part it from who writes to it.
    descriptors = os.path.realpath(path.parent).startswith("/proc/")
    return descriptors or _standard_stream(found) is not None


def _standard_stream(found: os.stat_result) -> int | None:
    """The descriptor of standard output or error, if that is the file; else None."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), found):
                return descriptor
    return None


def _write_in_place(path: Path, data: bytes) -> None:
    descriptor = _standard_stream(path.stat())
    if descriptor is None:
        path.write_bytes(data)
        return
    # Opened anew it would be cut, and overwritten by what is printed later.
    (sys.stdout if descriptor == 1 else sys.stderr).flush()
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)


def _file_fault(path: Path) -> str | None:
    try:
        if path.is_dir():
            return "is a folder; name a file"
        if not path.exists():
            path = Path(os.path.realpath(path))  # a link's target, which is not there yet
            if path.is_symlink():
                return "is a link to itself; name a file"
            if not path.parent.is_dir():
                return f"there is no folder '{path.parent}'"
            return folder_fault(path.parent)
        mode = path.stat().st_mode
    except OSError as error:
        return f"can't be written ({error.strerror})"
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        return f"is a {'socket' if stat.S_ISSOCK(mode) else 'disk'}; name a file"
    if not os.access(path, os.W_OK):
        return "can't be written (permission denied)"
    return None
