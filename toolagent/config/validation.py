"""Values checked by pydantic, and its first error as one line that names the key."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from toolagent.config.source import KeyPath, Source, shown
from toolagent.errors import UserError, nearest


def validated(
    kind: Any,
    value: Any,
    path: KeyPath,
    source: Source,
    *,
    owners: Mapping[str, str] | None = None,
    context: Any = None,
) -> Any:
    """The value as the type has it.

    Args:
        kind: a pydantic model, a `TypedDict` or any other type.
        value: is not changed.
        path: of the value in the configuration.
        source: of the value.
        owners: key -> where it belongs, for keys that are unknown here.
        context: for validators, as pydantic hands it on.

    Raises:
        UserError: it does not fit; for an unknown key with the nearest known one.
    """
    try:
        return _adapter(kind).validate_python(value, context=context)
    except ValidationError as error:
        raise _fault(error, kind, value, path, source, owners or {}) from None


def check_name(value: Any, path: KeyPath, known: Mapping[str, Any], source: Source) -> str:
    """The value, if it is one of the known names.

    Raises:
        UserError: it is not; the message says what the nearest one is.
    """
    if not isinstance(value, str):
        raise source.error(path, f"expected one of {', '.join(known)}, got {shown(value)}")
    if value not in known:
        raise source.error(path, f"no {path[-1]} {shown(value)}; {nearest(value, known)}")
    return value


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _fault(
    error: ValidationError,
    kind: Any,
    value: Any,
    path: KeyPath,
    source: Source,
    owners: Mapping[str, str],
) -> UserError:
    errors = error.errors(include_url=False)
    keys, inner = _place(errors[0]["loc"], value)
    found = errors[:1]
    if len(keys) < len(errors[0]["loc"]):
        # A value that fits no member of a union has an error for each; behind the keys, the
        # location says which. Those that came furthest tell what was meant.
        alike = [each for each in errors if each["loc"][: len(keys)] == tuple(keys)]
        furthest = min(_rank(each, inner) for each in alike)
        found = [each for each in alike if _rank(each, inner) == furthest]
    first = found[0]
    keys, _ = _place(first["loc"], value)  # as far as the value has its keys
    where = (*path, *map(str, keys))
    if first["type"] == "missing":
        return source.error((*path, *map(str, first["loc"])), "missing")
    if first["type"] == "extra_forbidden":
        right = owners.get(where[-1]) if len(keys) == 1 else None
        hint = f"did you mean '{right}'?" if right else nearest(where[-1], _known(kind, keys[:-1]))
        return source.error(where, f"unknown; {hint}")
    if first["type"] == "value_error":
        return relative_fault(str(first.get("ctx", {}).get("error")), where, source)
    wanted = " or ".join(dict.fromkeys(each["msg"].split(" should be ")[-1] for each in found))
    verb = "expected" if _is_type_error(first) else "must be"
    return source.error(where, f"{verb} {wanted}, got {shown(first['input'])}")


def relative_fault(message: str, path: KeyPath, source: Source) -> UserError:
    """A model's own message, which may begin with the key as seen from it: 'levels.0: ...'."""
    inner, colon, fault = message.partition(": ")
    if not colon or " " in inner:
        return source.error(path, message)
    return source.error((*path, *inner.split(".")), fault)


def _place(location: Sequence[int | str], value: Any) -> tuple[list[int | str], Any]:
    """The keys and indices at the front of the location, and the value that they lead to."""
    keys: list[int | str] = []
    for part in location:
        try:
            value = value[part]  # type: ignore[index]
        except (LookupError, TypeError):
            break
        keys.append(part)
    return keys, value


def _rank(error: ErrorDetails, value: Any) -> int:
    """0: something in the value is wrong; 1: the value is out of range; 2: it has another type."""
    if error["input"] is not value:
        return 0
    return 2 if _is_type_error(error) else 1


def _is_type_error(error: ErrorDetails) -> bool:
    return error["type"].endswith("_type") or error["type"] in ("literal_error", "none_required")


def _known(kind: Any, keys: Sequence[int | str]) -> list[str]:
    """The keys of the model or `TypedDict` that lies at this place inside the type."""
    for key in keys:
        kind = _inner(_fields(kind).get(str(key))) or kind
    return list(_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    if is_typeddict(kind):
        return dict(kind.__annotations__)
    return {name: field.annotation for name, field in kind.model_fields.items()}


def _inner(annotation: Any) -> Any:
    """The first model or `TypedDict` in the annotation; None if there is none."""
    if is_typeddict(annotation) or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    ):
        return annotation
    return next(filter(None, map(_inner, get_args(annotation))), None)
