"""`--set section.key=value`: parsing, and applying to a document."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from toolagent.config import documents
from toolagent.config.source import KeyPath, Source, one_name, shown
from toolagent.errors import UserError

_NULLS = ("~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Override:
    """One `--set`: the key's path and the value."""

    path: KeyPath
    value: Any


def parse_override(text: str) -> Override:
    """Reads 'section.key=value', the value as YAML.

    Raises:
        UserError: it has another form.
    """
    key, equals, value_text = text.partition("=")
    key = key.strip()
    label = f"--set {one_name(key or text)}"
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise UserError(f"--set {one_name(text)}: expected section.key=value")
    if len(path) > documents.MAX_DEPTH:
        raise UserError(f"{label}: nested deeper than {documents.MAX_DEPTH} levels")
    value = documents.parse(value_text, label)
    if value is None and value_text.strip() not in _NULLS:
        raise UserError(f"{label}: has no value; write null to mean none")
    return Override(path, value)


def apply_overrides(document: dict[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of the document with the values put in place, later ones over earlier ones.

    Raises:
        UserError: a path leads through something that is neither a mapping nor a list.
    """
    result = copy.deepcopy(document)
    for override in overrides:
        _put(result, override)
    return result


def _put(document: dict[str, Any], override: Override) -> None:
    *parents, last = override.path
    node: Any = document
    for depth, part in enumerate(parents):
        key = _key(node, part, override.path, depth)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}  # a section that is absent or empty ('training:') begins here
        node = node[key]
    node[_key(node, last, override.path, len(parents))] = copy.deepcopy(override.value)


def _key(node: Any, part: str, path: KeyPath, depth: int) -> Any:
    """`part` as a key of the node: text for a mapping, an index for a list."""
    if isinstance(node, dict):
        return part
    source = Source(overridden=(path,))
    if not isinstance(node, list):
        owner = ".".join(path[:depth])
        raise source.error(path, f"'{owner}' is {shown(node)}, which has no entries")
    if not (part.isascii() and part.isdecimal()) or len(part) > 9 or int(part) >= len(node):
        raise source.error(path, f"no entry '{part}'; the list has {len(node)}, from 0")
    return int(part)
