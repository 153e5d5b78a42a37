"""From the command line to the first update, and how much of that is Ray's and RLlib's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from toolagent.errors import UserError

_POLL_S = 0.02
_LIMIT_S = 180.0


def measure_startup() -> dict[str, float]:
    """Seconds of one start of `python -m toolagent.run` with its default config.

    Returns:
        `first_update_s`: from starting the process to the row of its first iteration, which
        holds one update here. Within it `rllib_import_s` (torch included), `ray_init_s`,
        `rllib_build_s` (the actors' processes start and import; env runner, learner and module
        are made) and `own_s`, the rest.

    Raises:
        UserError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        parts, output = Path(folder) / "parts.json", Path(folder) / "run"
        command = [sys.executable, "-m", "toolagent.benchmark.traced_start", str(parts)]
        command += ["--stop-env-steps", "1", "--output-dir", str(output)]
        command += ["--set", "training.updates_per_iteration=1"]
        with (Path(folder) / "log").open("w+", encoding="utf-8", errors="replace") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())
            try:
                _wait_for(output / "progress.jsonl", process, log)
                first_update = time.perf_counter() - started
                if process.wait(_LIMIT_S):
                    raise _failed(log)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        seconds = json.loads(parts.read_text(encoding="utf-8"))
    return {
        "first_update_s": first_update,
        **seconds,
        "own_s": first_update - sum(seconds.values()),
    }


def _wait_for(file: Path, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    deadline = time.perf_counter() + _LIMIT_S
    while not (file.is_file() and file.stat().st_size):
        if process.poll() is not None:
            raise _failed(log)
        if time.perf_counter() > deadline:
            raise UserError(f"start-up: toolagent.run made no update in {_LIMIT_S:g} s")
        time.sleep(_POLL_S)


def _failed(log: IO[str]) -> UserError:
    log.seek(0)
    return UserError(f"start-up: toolagent.run failed: {log.read()[-500:]}")


def _environment() -> dict[str, str]:
    """This process's, with toolagent importable from wherever it is."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
