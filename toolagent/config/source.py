"""Where a setting came from, and how a fault in it is worded: one line, place, key, fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolagent.errors import UserError

KeyPath = tuple[str, ...]

_LONGEST_VALUE = 60
_LONGEST_NAME = 200  # of a key, a path
_LONGEST_LINE = 2000  # room for the longest list of known options


@dataclass(frozen=True)
class Source:
    """The file that was loaded ('' for none) and the keys that `--set` changed in it."""

    file: str = ""
    overridden: tuple[KeyPath, ...] = ()
    prefix: KeyPath = ()  # where the settings stand that paths are given in

    def error(self, path: KeyPath, fault: str) -> UserError:
        """'ppo.yaml: training.lr: ...', or '--set training.lr: ...' for what `--set` wrote."""
        path = (*self.prefix, *path)
        key = one_name(".".join(path))
        if any(path[: len(changed)] == changed for changed in self.overridden):
            return UserError(f"--set {key}: {one_line(fault)}")
        place = one_name(self.file)
        if any(changed[: len(path)] == path for changed in self.overridden):
            place += " with --set"  # the fault may lie in either
        return UserError(": ".join(part for part in (place, key, one_line(fault)) if part))


def one_line(text: object, longest: int = _LONGEST_LINE) -> str:
    """Whitespace runs become one space, what no terminal can show becomes an escape."""
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(str(text).split())
    )
    return _cut(line, longest)


def one_name(text: object) -> str:
    """A key or a path as an error message shows it."""
    return one_line(text, _LONGEST_NAME)


def shown(value: Any) -> str:
    """A value as an error message shows it: short, whatever it is."""
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None:
        return "null"
    return _cut(repr(value), _LONGEST_VALUE)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
