"""`manifest.json`: what a checkpoint consists of, so that a torn one is known before it is read.

    {"format": 3, ..., "files": {"run.json": {"bytes": 93, "sha256": "..."}, ...}, "sha256": "..."}

A folder is whole if it holds exactly the files that are listed, each of the size and sum that is
written there; the last `sha256` is the manifest's own. This detects the effects of a crash, a full
disk or a bad disk. It does not detect tampering: whoever can write the files can write the sums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolagent.checkpoints.run_files import Manifest, parsed, read_bytes
from toolagent.errors import UserError
from toolagent.files import sync_folder, write_synced

MANIFEST = "manifest.json"
FORMAT = 3  # 1 had no manifest, and pickles; 2 knew no iteration under way


class TornCheckpoint(ValueError):
    """A checkpoint is not whole; the message says what is wrong with which file."""


def write_manifest(folder: Path, contents: Mapping[str, Any]) -> None:
    """Lists all files that are in the folder; the last thing that is written into it.

    Args:
        folder: of plain files only.
        contents: what else the manifest says.

    Raises:
        OSError: it can't be written.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = _rendered({"format": FORMAT, **contents, "files": files})
    Manifest.model_validate_json(text)
    write_synced(folder / MANIFEST, text)
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest itself, sound; the files that it lists are not looked at.

    Raises:
        TornCheckpoint: it is missing, damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise TornCheckpoint(
            f"has no {MANIFEST}: it is torn, or was written by an older version of toolagent"
        )
    try:
        text = read_bytes(path)
        manifest = parsed(text, Manifest, f"{MANIFEST} is damaged")
    except UserError as error:
        raise TornCheckpoint(str(error)) from None
    contents = json.loads(text)
    contents.pop("sha256", None)
    # Every byte counts, its own sum's too: what was written is what would be written again.
    if _rendered(contents) != text:
        raise TornCheckpoint(f"{MANIFEST} is damaged")
    if manifest.format != FORMAT:
        raise TornCheckpoint(
            f"{MANIFEST} has format {manifest.format}; this version reads {FORMAT}"
        )
    return manifest


def verify(folder: Path) -> None:
    """Checks every file of the folder against the manifest.

    Raises:
        TornCheckpoint: a file is missing, cut, changed, or not listed.
    """
    expected = read_manifest(folder).files
    try:
        present = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
        for name in sorted(expected.keys() - present.keys()):
            raise TornCheckpoint(f"{name} is missing")
        for name in sorted(present.keys() - expected.keys()):
            raise TornCheckpoint(f"{name} does not belong to it")
        for name, entry in expected.items():
            path = present[name]
            if path.is_symlink() or not path.is_file():
                raise TornCheckpoint(f"{name} is no regular file")
            size = path.stat().st_size
            if size != entry.bytes:
                raise TornCheckpoint(f"{name} has {size:,} bytes, not {entry.bytes:,}")
            if _sha256(path) != entry.sha256:
                raise TornCheckpoint(f"{name} is damaged (its SHA-256 is not the manifest's)")
    except OSError as error:
        name = Path(error.filename).name if error.filename else "it"
        raise TornCheckpoint(f"{name} can't be read ({error.strerror})") from error


def _rendered(manifest: Mapping[str, Any]) -> bytes:
    """The text of the manifest, with its own sum."""
    own = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": own}, indent=2) + "\n").encode()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
