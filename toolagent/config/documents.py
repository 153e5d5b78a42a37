"""YAML text to plain dicts, lists and scalars, and back.

Only what a configuration needs: no tags, no aliases, text keys, each key once. Numbers are read
as YAML 1.2 does it: `3e-4` is a float (PyYAML's YAML 1.1 reads text), and `1:30` and `010` are
text (YAML 1.1 reads 90 and 8).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import yaml

from toolagent.config.source import one_line
from toolagent.errors import UserError

MAX_DEPTH = 30  # far below Python's recursion limit, far above any configuration

_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"(?i:true|false|yes|no|on|off)", "tTfFyYnNoO"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """With the tags of `_RESOLVERS`, maps and sequences only."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name and type)
    yaml_constructors: dict[str, Any] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # Also keeps out the alias bombs that expand to gigabytes when written again.
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported; write the value out", problem_mark=mark
            )
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that `_Loader` would read as something else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _name,
            re.compile(rf"(?:{_pattern})$"),
            [character if character != "\0" else "" for character in _first],
        )


def parse(text: str, label: str) -> Any:
    """The one document in the text, None if there is none.

    Raises:
        UserError: it is not YAML, or more than a configuration needs; one line with the place.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{label}: {_condensed(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{label}: not YAML: {one_line(error)}") from None


def dump(document: dict[str, Any]) -> str:
    """YAML that `parse` reads back to an equal document; ASCII, in the given order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False)


def _condensed(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    context = f" ({error.context})" if error.context else ""
    return one_line(f"{where}{error.problem or 'not YAML'}{context}")


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    first_line: dict[str, int] = {}
    result: dict[str, Any] = {}
    pairs = loader.construct_pairs(node, deep=True)
    for (key, value), (key_node, _) in zip(pairs, node.value, strict=True):
        if not isinstance(key, str):
            raise _fault(key_node, f"the key {key_node.value!r} is not text; quote it")
        if key in result:
            raise _fault(key_node, f"duplicate key '{key}' (first on line {first_line[key]})")
        first_line[key] = key_node.start_mark.line + 1
        result[key] = value
    return result


def _scalar(read: Callable[[str], Any], loader: _Loader, node: yaml.ScalarNode) -> Any:
    try:
        return read(loader.construct_scalar(node))
    except (ValueError, KeyError) as error:
        raise _fault(node, f"not a valid {node.tag.removeprefix(_TAG)}: {error}") from None


def _fault(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    value = int(digits, 16 if digits.startswith("0x") else 10)
    if abs(value) >= 2**63:
        raise ValueError("it has more than 63 bits")
    return value


def _float(text: str) -> float:
    value = float(re.sub(r"\.(inf|nan)$", r"\1", text.lower().replace("_", "")))
    if math.isnan(value):
        raise ValueError("NaN is no setting")
    return value


def _text(text: str) -> str:
    text.encode()  # a lone surrogate (an escape such as "\ud800") raises a ValueError
    if "\0" in text:
        raise ValueError("it has a NUL character")
    return text


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: _Loader.bool_values[text.lower()],
    "int": _integer,
    "float": _float,
    "str": _text,
}
for _name, _read in _SCALARS.items():
    _Loader.add_constructor(_TAG + _name, functools.partial(_scalar, _read))
_Loader.add_constructor(_TAG + "seq", functools.partial(_Loader.construct_sequence, deep=True))
_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_constructor(None, _Loader.construct_undefined)  # type: ignore[arg-type]
