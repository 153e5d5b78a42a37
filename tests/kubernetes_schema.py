"""Checks a manifest as a Kubernetes API server would, and stricter: unknown fields are errors."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema

# What every object may have and schemas of custom resources leave open.
_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}


def faults(manifest: Any, schema: dict[str, Any]) -> list[str]:
    """What the schema (OpenAPI v3, as in a custom resource definition) has against the manifest."""
    validator = jsonschema.Draft202012Validator(strict(schema))
    return sorted(
        f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)
    )


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as JSON Schema that refuses unknown fields.

    An object without `x-kubernetes-preserve-unknown-fields` gets `additionalProperties: false`. An
    int-or-string may be both. A field with a default is not required: the server fills it in.
    """
    schema = copy.deepcopy(schema)
    _tighten(schema)
    return schema


def _tighten(schema: dict[str, Any]) -> None:
    properties = schema.get("properties", {})
    if "metadata" in properties:
        properties["metadata"] = copy.deepcopy(_METADATA)
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    elif schema.get("type") == "object":
        free = schema.get("x-kubernetes-preserve-unknown-fields", False)
        if not free and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
        if "required" in schema:
            schema["required"] = [
                name for name in schema["required"] if "default" not in properties.get(name, {})
            ]
    for nested in properties.values():
        _tighten(nested)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _tighten(schema[key])
