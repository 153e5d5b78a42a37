"""From the command line to the first update, and how much of that is Ray's and RLlib's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from toolagent.errors import UserError

_POLL_S = 0.02
_LIMIT_S = 180.0


def measure_startup() -> dict[str, float]:
    """Seconds, each part measured in a process of its own.

    Returns:
        `first_update_s`: from starting `python -m toolagent.run` to the row of its first
        iteration, which holds one update here. `rllib_import_s`, `ray_init_s`, `rllib_build_s`:
        Ray and RLlib alone (`rllib_startup`). `own_s`: the rest.

    Raises:
        UserError: one of the commands failed.
    """
    first_update = _first_update_s()
    alone = json.loads(_output([sys.executable, "-m", "toolagent.benchmarks.rllib_startup"]))
    return {"first_update_s": first_update, **alone, "own_s": first_update - sum(alone.values())}


def _first_update_s() -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        progress = output / "progress.jsonl"
        command = [sys.executable, "-m", "toolagent.run", "--stop-env-steps", "1"]
        command += ["--set", "training.updates_per_iteration=1", "--output-dir", str(output)]
        with tempfile.TemporaryFile("w+") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())
            try:
                while not (progress.is_file() and progress.stat().st_size):
                    if process.poll() is not None:
                        log.seek(0)
                        raise UserError(f"toolagent.run failed: {log.read()[-500:]}")
                    if time.perf_counter() - started > _LIMIT_S:
                        raise UserError(f"toolagent.run made no update in {_LIMIT_S:g} s")
                    time.sleep(_POLL_S)
                seconds = time.perf_counter() - started
                process.wait(_LIMIT_S)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
    return seconds


def _output(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_S, env=_environment()
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} failed: {done.stderr[-500:]}")
    return done.stdout.strip().splitlines()[-1]


def _environment() -> dict[str, str]:
    """This process's, with toolagent importable from wherever it is."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
