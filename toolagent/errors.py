"""The one exception for what a user can get wrong, and helpers for what such messages say."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something the user can mend: the message is one line, what was wrong and what would be right.

    The commands print it on stderr and exit with code 2; anything else is a bug and keeps its
    traceback.
    """


@contextlib.contextmanager
def labelled(label: str, kind: type[Exception] = UserError) -> Iterator[None]:
    """Errors of this kind in the block become the user's, with the label before what they say; of
    an OSError that is its reason."""
    try:
        yield
    except kind as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"{label}{reason or error}") from None


def nearest(
    word: str, known: Iterable[str], otherwise: str | None = None, cutoff: float = 0.6
) -> str:
    """A hint to append to an error: the closest known word; if none is close, `otherwise`, or
    the whole list.

    Args:
        word: what was given.
        known: what would be right.
        otherwise: instead of the list.
        cutoff: how alike the closest must be, as `difflib` measures it: 0..1.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    if close:
        return f"did you mean '{close[0]}'?"
    if otherwise is not None:
        return otherwise
    return "known: " + ", ".join(known)


def check_text(label: str, text: str, remedy: str) -> None:
    """Refuses what is not text: Ray, JSON and the files of a run hold only text.

    Raises:
        UserError: it has bytes that are none, or that the locale's encoding can't read.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        remedy = remedy if encoding == "utf-8" else "set LC_ALL=C.UTF-8"
        raise UserError(f"{label} '{text}': is no {encoding.upper()} text; {remedy}") from None


def quoted(path: str | os.PathLike[str]) -> str:
    """The path (or URI) as it can be pasted into a command: "'t v/report.html'". Characters that
    are not printable, and bytes that are no UTF-8, become the escapes of bash's and zsh's $'...'.
    """
    text = os.fspath(path)
    if text.startswith("-"):  # it would be taken for an option
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
