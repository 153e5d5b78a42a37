"""The one exception for what a user can get wrong, and helpers for what such messages say."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message is one line, what was wrong and what would be right.

    The commands print it on stderr and exit with code 2; anything else is a bug and keeps its
    traceback.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint to append to an error: the closest known word, or the whole list if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(known)


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
