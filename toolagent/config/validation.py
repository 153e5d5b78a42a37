"""Values checked by pydantic, and its error as one line that names the key."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from toolagent.config.source import KeyPath, Source, shown
from toolagent.errors import UserError, nearest

_NOVELTY = "the novelty bonus is gone; use training.explorer_share"

# Keys of older versions of toolagent and RLlib.
RENAMED: dict[str, str] = {
    "rollouts": "renamed to env_runners",
    "exploration": "renamed to env_runners",
    "num_rollout_workers": "renamed to env_runners.num_env_runners",
    "episodes_per_problem": "renamed to training.group_size",
    "max_policy_age": "renamed to training.max_staleness",
    "replay_coefficient": "renamed to training.replay_coeff",
    "novelty_coefficient": _NOVELTY,
    "novelty_cap": _NOVELTY,
}
_ALIKE = 0.8  # how alike a key of another section must be, as `difflib` measures it
_FEW = 8  # names that an error message lists


def validated(
    kind: Any, value: object, path: KeyPath, source: Source, owners: Mapping[str, str] | None = None
) -> Any:
    """The value as the type has it.

    Args:
        kind: a pydantic model, a `TypedDict` or any other type.
        value: is not changed.
        path: of the value in the configuration.
        source: of the value.
        owners: key -> its place ('training.lr'), for keys that are unknown here.

    Raises:
        UserError: it does not fit.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise _fault(error, kind, value, path, source, owners or {}) from None


def unknown_key(name: str, known: Sequence[str], owners: Mapping[str, str]) -> str:
    """What is said of an unknown key: its new name, its place, the nearest key, or where all are
    listed."""
    if name in RENAMED:
        return RENAMED[name]
    if name in owners:
        return f"unknown; did you mean '{owners[name]}'?"
    elsewhere = difflib.get_close_matches(name, owners, n=1, cutoff=_ALIKE)
    if elsewhere and not difflib.get_close_matches(name, known, n=1):
        return f"unknown; did you mean '{owners[elsewhere[0]]}'?"
    listed = "the keys are listed in rllib_configs/README.md" if len(known) > _FEW else None
    return f"unknown; {nearest(name, known, otherwise=listed)}"


def relative_fault(message: str, path: KeyPath, source: Source) -> UserError:
    """A model's own message, which may begin with the key as seen from it: 'levels.0: ...'."""
    inner, colon, fault = message.partition(": ")
    if not colon or " " in inner:
        return source.error(path, message)
    return source.error((*path, *inner.split(".")), fault)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _fault(
    error: ValidationError,
    kind: Any,
    value: object,
    path: KeyPath,
    source: Source,
    owners: Mapping[str, str],
) -> UserError:
    found = [(_keys(each["loc"], value), each) for each in error.errors(include_url=False)]
    # A value that fits no member of a union has an error for each; the one that came furthest
    # tells what was meant.
    keys, first = max(found, key=lambda each: (len(each[0]), not _is_type_error(each[1])))
    where = (*path, *keys)
    if first["type"] == "missing":
        return source.error((*where, str(first["loc"][-1])), "missing")
    if first["type"] == "extra_forbidden":
        known = sorted(_names(_adapter(kind).json_schema()))
        return source.error(where, unknown_key(where[-1], known, owners))
    if first["type"] == "value_error":
        return relative_fault(str(first.get("ctx", {}).get("error")), where, source)
    is_type = _is_type_error(first)
    alike = [each for at, each in found if at == keys and _is_type_error(each) == is_type]
    wanted = " or ".join(dict.fromkeys(each["msg"].split(" should be ")[-1] for each in alike))
    verb = "expected" if is_type else "must be"
    return source.error(where, f"{verb} {wanted}, got {shown(first['input'])}")


def _keys(location: Sequence[int | str], value: Any) -> KeyPath:
    """The keys and indices in the location; besides, it has the names of the members of unions."""
    keys = []
    for part in location:
        try:
            value = value[part]
        except (LookupError, TypeError):
            continue
        keys.append(str(part))
    return tuple(keys)


def _is_type_error(error: ErrorDetails) -> bool:
    return error["type"].endswith("_type") or error["type"] in ("literal_error", "none_required")


def _names(schema: object) -> set[str]:
    """Every key that a JSON schema knows, at whatever depth."""
    if isinstance(schema, list):
        return set().union(*map(_names, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", ())).union(*map(_names, schema.values()))
