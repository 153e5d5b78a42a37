"""Does a value out of YAML fit a type hint? Strict: True is no int, '64' is no int, 1 is a float.

Values are None, bool, int, float, str, list or dict. A hint that says nothing about these (Any, a
name that cannot be resolved) lets everything pass. Classes and functions are written as text,
'package.module:Name'.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from typing import Any

_LISTS = (
    list,
    set,
    frozenset,
    collections.abc.Collection,
    collections.abc.Iterable,
    collections.abc.Sequence,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_SCALARS = (bool, int, float, str)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of that type can be meant."""
    if _says_nothing(hint):
        return True
    members = _members(hint)
    if members is not None:
        return any(fits(value, member) for member in members)
    if hint in (None, type(None)):
        return value is None
    if hint in _SCALARS:
        return _is_scalar(value, hint)
    if names_code(hint):
        return isinstance(value, str)
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin in _LISTS:
        return isinstance(value, list) and all(
            fits(item, arguments[0] if arguments else Any) for item in value
        )
    if origin is tuple:
        return isinstance(value, list) and _fits_tuple(value, arguments)
    if origin in _MAPPINGS:
        item = arguments[1] if arguments else Any
        return isinstance(value, dict) and all(fits(entry, item) for entry in value.values())
    return False  # an object of some class: YAML has no way to write it


def describe(hint: Any) -> str:
    """What fits, in few words: 'float or list'."""
    return " or ".join(dict.fromkeys(_words(hint))) or "an object that YAML cannot write"


def names_code(hint: Any) -> bool:
    """Whether the hint (or a member of the union) is a class or a function."""
    members = _members(hint)
    if members is not None:
        return any(names_code(member) for member in members)
    origin = typing.get_origin(hint) or hint
    return origin is type or origin is collections.abc.Callable or origin is typing.Callable


def takes_text(hint: Any) -> bool:
    """Whether text fits that names no class and no function."""
    return any(not names_code(member) and fits("text", member) for member in _members(hint) or ())


def _words(hint: Any) -> list[str]:
    members = _members(hint)
    if members is not None:
        return [word for member in members for word in _words(member)]
    if hint in _SCALARS:
        return [hint.__name__]
    if names_code(hint):
        return ["'package.module:Name'"]
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return [repr(choice) for choice in typing.get_args(hint)]
    if origin in _LISTS or origin is tuple:
        return ["list"]
    if origin in _MAPPINGS:
        return ["mapping"]
    return []  # None goes without saying; an object cannot be written


def _members(hint: Any) -> tuple[Any, ...] | None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return typing.get_args(hint)[:1]
    return None


def _says_nothing(hint: Any) -> bool:
    return hint in (Any, object) or isinstance(hint, (str, typing.ForwardRef, typing.TypeVar))


def _is_scalar(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:  # bool is a subclass of int
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _fits_tuple(value: list[Any], arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if arguments[-1] is Ellipsis:
        return all(fits(item, arguments[0]) for item in value)
    return len(value) == len(arguments) and all(map(fits, value, arguments))
