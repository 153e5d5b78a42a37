"""An algorithm's state in two plain files: its structure as JSON, its arrays as safetensors.

RLlib would write pickles, and reading a pickle runs whatever is in it. A state is numbers, text and
arrays in dicts and lists; these two files hold exactly that, so reading them can run nothing.
Everything comes back as it was, bit for bit and of the same type; tensors come back on the CPU.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from toolagent.checkpoints.run_files import read_bytes
from toolagent.tasks.columns import Columns

STRUCTURE_FILE = "state.json"
ARRAYS_FILE = "state.safetensors"

_LARGEST_STRUCTURE = 1 << 30  # bytes
_KIND = "$"  # marks a JSON object that stands for something else than a dict with texts as keys
_KINDS = "biuf"  # of NumPy's types: truth values and numbers
# What texts and numbers that no `encode_state` wrote make of the functions that read them.
_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    safetensors.SafetensorError,
)
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}


def encode_state(state: Any) -> dict[str, bytes]:
    """The state as two files' contents, by file name.

    Raises:
        TypeError: it holds something else than None, numbers, text, bytes, arrays, tensors,
            `Columns`, and dicts, lists, tuples, sets and deques of them; names where.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _encode(state, arrays, "")
    return {
        STRUCTURE_FILE: (json.dumps(structure, separators=(",", ":")) + "\n").encode(),
        ARRAYS_FILE: safetensors.numpy.save(arrays),
    }


def read_state(folder: Path) -> Any:
    """The state in the folder's two files; the inverse of `encode_state`.

    Raises:
        OSError: a file can't be read.
        ValueError: the files are not what `encode_state` made.
    """
    try:
        structure = json.loads(read_bytes(folder / STRUCTURE_FILE, _LARGEST_STRUCTURE))
        arrays = safetensors.numpy.load((folder / ARRAYS_FILE).read_bytes())
        return _decode(structure, arrays)
    except _UNREADABLE as error:
        raise ValueError(f"no state that could be read ({str(error)[:200] or error!r})") from error


def _encode(value: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | torch.Tensor):
        return _encode_array(value, arrays, path)
    number: Any = value
    if isinstance(number, np.generic) and number.dtype.kind in _KINDS:
        return {_KIND: "number", "dtype": number.dtype.name, "value": number.item()}
    if isinstance(value, list):
        return [_encode(item, arrays, f"{path}/{i}") for i, item in enumerate(value)]
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and _KIND not in value:
            return {key: _encode(item, arrays, f"{path}/{key}") for key, item in value.items()}
        pairs = [
            [_encode(key, arrays, path), _encode(item, arrays, f"{path}/{key}")]
            for key, item in value.items()
        ]
        return {_KIND: "dict", "items": pairs}
    for kind, sequence in _SEQUENCES.items():
        if isinstance(value, sequence):
            items = [_encode(item, arrays, f"{path}/{i}") for i, item in enumerate(value)]
            more = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
            return {_KIND: kind, "items": items, **more}
    if isinstance(value, bytes):
        return {_KIND: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, Columns):
        columns = {name: _encode(c, arrays, f"{path}/{name}") for name, c in value.columns()}
        return {_KIND: "columns", "class": _name(type(value)), "columns": columns}
    raise TypeError(
        f"state{path} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds "
        "numbers, text and arrays only"
    )


def _encode_array(value: Any, arrays: dict[str, np.ndarray], path: str) -> dict[str, Any]:
    kind = "array"
    if isinstance(value, torch.Tensor):
        kind, value = "tensor", value.detach().cpu().numpy()
    if value.dtype.kind not in _KINDS:
        raise TypeError(f"state{path} is an array of {value.dtype}; a checkpoint holds numbers")
    name = str(len(arrays))
    # safetensors writes the memory as it lies: in C order, in this machine's byte order.
    arrays[name] = np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
    return {_KIND: kind, "name": name}


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: _decode(item, arrays) for key, item in value.items()}
    kind = value[_KIND]
    if kind == "array":
        return arrays[value["name"]].copy()  # as read they can't be written to
    if kind == "tensor":
        return torch.from_numpy(arrays[value["name"]].copy())
    if kind == "number":
        return np.dtype(value["dtype"]).type(value["value"])
    if kind == "dict":
        return {_decode(key, arrays): _decode(item, arrays) for key, item in value["items"]}
    if kind in _SEQUENCES:
        more = {"maxlen": value["maxlen"]} if kind == "deque" else {}
        return _SEQUENCES[kind]((_decode(item, arrays) for item in value["items"]), **more)
    if kind == "bytes":
        return base64.b64decode(value["base64"])
    if kind == "columns":
        # Found among the classes that are there: a file can't make anything be imported.
        known = {_name(found): found for found in _subclasses(Columns)}
        columns = {name: _decode(column, arrays) for name, column in value["columns"].items()}
        return known[value["class"]].restored(columns)
    raise ValueError(f"unknown kind {kind!r} in {STRUCTURE_FILE}")


def _name(columns_class: type) -> str:
    return f"{columns_class.__module__}.{columns_class.__qualname__}"


def _subclasses(base: type) -> Iterator[type]:
    for found in base.__subclasses__():
        yield found
        yield from _subclasses(found)
