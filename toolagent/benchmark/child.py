"""Runs commands of toolagent in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from toolagent.errors import UserError


def run_module(module: str, *arguments: str, timeout_s: float | None = None) -> None:
    """Runs `python -m MODULE ...`, with toolagent importable from wherever it is.

    Raises:
        UserError: it failed, with its last line of output, or took too long.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            output, error = process.communicate(timeout=timeout_s)
        except BaseException as fault:
            process.terminate()  # it ends its own processes, which a kill would leave
            if isinstance(fault, subprocess.TimeoutExpired):
                raise UserError(f"{module}: has not ended after {timeout_s:g} s") from None
            raise
    if process.returncode:
        lines = (error or output).strip().splitlines() or ["no output"]
        raise UserError(f"{module} {' '.join(arguments)}: failed: {lines[-1]}")
