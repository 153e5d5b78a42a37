"""The secret that every client of a Ray cluster shows, in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from pathlib import Path

from toolagent.errors import UserError, quoted

_MAX_BYTES = 4096


def prepare_token(create: bool) -> None:
    """Has a token where Ray will look for it; to be called before Ray is started or joined.

    Ray looks into `RAY_AUTH_TOKEN`, the file at `RAY_AUTH_TOKEN_PATH` and `~/.ray/auth_token`. It
    would make the last one itself, but readable for all users of the machine. Where it can't be
    made (the home folder is read-only, or there is none), the token is in `RAY_AUTH_TOKEN` of this
    process and of those that it starts, and ends with them.

    Args:
        create: make a token where there is none; for a cluster that is started here.

    Raises:
        UserError: the file that `RAY_AUTH_TOKEN_PATH` names can't be read, or is empty; what
            there is in a file is no token; or there is none to show to a cluster that is joined.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        print(
            "warning: RAY_AUTH_MODE=disabled: whoever reaches this Ray cluster runs code as you; "
            "unset it to ask for a token",
            file=sys.stderr,
        )
        return
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        with open(path, "rb") as file:
            token = file.read(_MAX_BYTES + 1).strip()
        if re.fullmatch(rb"[!-~]+", token) and len(token) <= _MAX_BYTES:
            _protect(path)
            return
        fault = "holds no token: expected one line of ASCII" if token else "is empty"
    except FileNotFoundError:
        fault = "there is no such file"
    except OSError as error:
        fault = str(error.strerror)
    if named:
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH={named}: {fault}; it must hold the cluster's token, or be unset"
        )
    if fault.startswith("holds no token"):
        raise UserError(f"{path}: {fault}; remove it, and a new one is made")
    if not create:
        if token_is_sent():
            raise UserError(
                f"RAY_AUTH_MODE=token, but there is no token in {path}; put the cluster's token "
                "there, with mode 0600"
            )
        return
    try:
        _create(path)
    except OSError as error:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        print(
            f"warning: {path} can't be written ({error.strerror}): only this command knows the "
            "token of its Ray cluster; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with "
            "a token, to use one of yours (for Ray's dashboard)",
            file=sys.stderr,
        )


def where_token_is() -> str | None:
    """Where a person finds the token that Ray's dashboard asks for: a command that prints it, or
    the variable that holds it. None where tokens are switched off.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "the value of RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"cat {quoted(named)}" if named else "cat ~/.ray/auth_token"


def token_is_sent() -> bool:
    """Whether a cluster that is joined is shown the token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _create(path: Path) -> None:
    """A new token, never readable for others; one that somebody else just made is kept."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_hex(32).encode())
    try:
        if path.exists() and not path.read_bytes().strip():
            path.unlink()
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _protect(path: Path) -> None:
    """Takes away what others may do with the token, if it is ours to take."""
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
