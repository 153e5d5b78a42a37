"""The one exception for what a user can get wrong."""

from __future__ import annotations

import difflib
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
