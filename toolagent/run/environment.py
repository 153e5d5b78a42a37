"""What a run ran on: versions, machine, commit, command line."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import toolagent
from toolagent.checkpoints.storage import without_secret
from toolagent.cli import program

PACKAGES = (
    *("toolagent", "ray", "torch", "numpy", "gymnasium", "pyarrow", "safetensors"),
    *("pydantic", "tensorboard", "matplotlib", "mlflow-skinny", "wandb"),
)
_GIT_TIMEOUT_S = 2.0


def describe_environment(**cluster: Any) -> dict[str, Any]:
    """One session's entry of `environment.json`.

    Args:
        cluster: what else is known of where it runs: plain JSON values.
    """
    import torch

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [program(), *map(without_secret, sys.argv[1:])],
        "commit": commit_of(Path(toolagent.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        **cluster,
    }


def commit_of(folder: Path) -> str | None:
    """The git commit that the code was at, '+ changes' if it was changed; None if none is known."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or not ours to read
        return None
    return f"{commit} + changes" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_GIT_TIMEOUT_S,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    if package == "toolagent":  # not installed where it runs from a checkout
        return toolagent.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
