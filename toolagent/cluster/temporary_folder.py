"""Where a cluster that is started here keeps its sockets and logs."""

from __future__ import annotations

import os

from toolagent.errors import UserError

_DEFAULT = "/tmp"
_LONGEST_SOCKET_PATH = 107  # bytes, on Linux
_SESSION = "ray/session_2026-01-31_23-59-59_000000"  # the process's id is appended


def prepare_temporary_folder() -> None:
    """Has a folder in which Ray's session can be; to be called before Ray is started.

    Ray takes `RAY_TMPDIR`, `TMPDIR` or /tmp, and makes a folder `ray` in it; Python's
    multiprocessing, which Ray's dashboard uses, has sockets in `TMPDIR` too. A `TMPDIR` that suits
    other programs may be too long for a socket's path: this process and those that it starts then
    have another.

    Raises:
        UserError: Ray can't use it.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if not os.environ.get(name, "-"):  # Ray would take the empty path for the current folder
            del os.environ[name]
    chosen, general = os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR")
    folder = chosen or general or _DEFAULT
    fault = _name_fault(folder) or _access_fault(folder)
    if chosen is None and general is not None and fault:
        folder = _DEFAULT
        fault = _access_fault(folder)
    if fault:
        label = "RAY_TMPDIR=" if chosen else ""
        raise UserError(
            f"{label}{folder}: {fault}; set RAY_TMPDIR to a folder with a short name, such as "
            "/tmp, for the sockets and logs of Ray"
        )
    if general is not None and (chosen is None or _name_fault(general)):
        os.environ["TMPDIR"] = folder


def _name_fault(folder: str) -> str | None:
    """Why sockets can't be in a folder of that name; None if they can."""
    if not os.path.isabs(folder):
        return "is no absolute path"
    if not folder.isascii():
        return "is not ASCII, as the paths of Ray's sockets must be"
    socket = os.path.join(folder, f"{_SESSION}_{os.getpid()}", "sockets", "plasma_store")
    most = _LONGEST_SOCKET_PATH - len(socket) + len(folder)
    if len(folder) > most:
        return f"is {len(folder)} bytes long, and with Ray's sockets in it at most {most} can be"
    return None


def _access_fault(folder: str) -> str | None:
    """Why Ray's session can't be written in the folder; None if it can."""
    session = os.path.join(folder, "ray")
    try:
        os.makedirs(session, exist_ok=True)
    except OSError as error:
        return f"Ray can't make a folder in it ({error.strerror})"
    return None if os.access(session, os.W_OK | os.X_OK) else f"{session} can't be written"
