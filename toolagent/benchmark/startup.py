"""From the command line to the first update, and to the prompt."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

_LIMIT_S = 180.0


def measure_startup() -> dict[str, float]:
    """Seconds of one start of `python -m toolagent.run` with its default config and one update.

    Returns:
        `first_update_s`: from starting the process to the row of its first iteration, which
        holds one update here. `prompt_s`: to its end; certifying an agent that has learned
        nothing, its results and the report are in it.

    Raises:
        UserError: the command failed.
    """
    from toolagent.benchmark.child import run_module

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        started = time.time()
        run_module(
            "toolagent.run", "--output-dir", str(output),
            "--stop-env-steps", "1", "--set", "training.updates_per_iteration=1",
            timeout_s=_LIMIT_S,
        )  # fmt: skip
        ended = time.time()
        # The file has one row: nothing is written to it after the first iteration.
        first_update = (output / "progress.jsonl").stat().st_mtime
    return {"first_update_s": first_update - started, "prompt_s": ended - started}
