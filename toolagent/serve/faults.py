"""What is wrong with a request that has not the shape of one, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NO_OBJECT = "is no JSON object"
# By pydantic's names for what it found; its own sentences are of its types, not of a problem.
_REASONS = {
    "dict_type": _NO_OBJECT,
    "finite_number": "is no number",
    "greater_than_equal": "is smaller than {ge}",
    "int_from_float": "is no whole number",
    "int_parsing": "is no whole number",
    "int_parsing_size": "is too large",
    "int_type": "is no whole number",
    "less_than_equal": "is larger than {le}",
    "list_type": "is no list",
    "literal_error": "is none of {expected}",
    "missing": "is missing",
    "model_attributes_type": _NO_OBJECT,
    "model_type": _NO_OBJECT,
    "string_too_long": "has more than {max_length} characters",
    "string_type": "is no text",
    "string_unicode": "is no text",
    "too_long": "has more than {max_length} values",
    "too_short": "has fewer than {min_length} values",
}


def fault_of(found: Mapping[str, Any], keys: Sequence[str]) -> tuple[int, str]:
    """A status and a sentence on one fault, without what was sent.

    Args:
        found: one of pydantic's `errors()`.
        keys: of a problem.
    """
    kind, context = found["type"], found.get("ctx", {})
    if kind == "json_invalid":
        return 400, f"the body is not JSON: {context['error']}"
    place = _place(found["loc"][1:])
    if kind == "extra_forbidden":
        return 422, f"{place} unknown key; a problem has {', '.join(keys)}"
    if "expected" in context:  # "'0', '1' or '2'"
        listed = context["expected"].replace("', '", " ").replace("' or '", " ").strip("'")
        context = {**context, "expected": listed}
    reason = _REASONS.get(kind, "is not what is expected here").format(**context)
    if reason == _NO_OBJECT and not found["loc"][1:]:  # as of curl without -H
        reason += "; send one, with Content-Type: application/json"
    return 422, f"{place} {reason}"


def _place(parts: Sequence[str | int]) -> str:
    """What comes before a reason: 'digits:', 'digits: value no. 4', 'problem 2: digits:'."""
    words: list[str] = []
    for part in parts:
        if not isinstance(part, int):
            words.append(part)
        elif words == ["problems"]:
            words = [problem(part)]
        else:
            words.append(f"value no. {part + 1}")
    named = bool(parts) and isinstance(parts[-1], str)
    return ": ".join(words or ["the body"]) + ":" * named


def problem(place: int) -> str:
    """What a problem of a batch is called, by its place from 0."""
    return f"problem {place + 1}"
