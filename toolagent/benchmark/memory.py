"""Memory of this process and everything it started, read from Linux's /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

_PROC = Path("/proc")


def memory_mib(without: Collection[int] = ()) -> float:
    """MiB of all these processes together; a page that several share counts once (PSS).

    Where the kernel does not tell PSS it is RSS, which counts shared pages several times; where
    there is no /proc it is 0.

    Args:
        without: process ids that are not counted.
    """
    kib = sum(_kib_of(process) for process in descendants(os.getpid()) if process not in without)
    return kib / 1024


def descendants(process: int) -> list[int]:
    """The process itself and all that it started, directly or not: Ray's services and actors."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in _PROC.glob("[0-9]*"):
        parent = _field(folder / "status", "PPid:")
        if parent is not None:
            children[parent].append(int(folder.name))
    found = [process]
    for one in found:  # grows while it is walked
        found += children[one]
    return found


def _kib_of(process: int) -> int:
    folder = _PROC / str(process)
    pss = _field(folder / "smaps_rollup", "Pss:")
    return (_field(folder / "status", "VmRSS:") or 0) if pss is None else pss


def _field(file: Path, name: str) -> int | None:
    """The number behind `name`; None if there is none, or the process has ended."""
    try:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass
    return None
