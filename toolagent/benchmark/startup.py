"""From the command line to the first update, and how much of that is Ray's and RLlib's own.

`python -m toolagent.benchmark.startup FILE [arguments of toolagent.run]` runs that command with a
stopwatch on those parts and writes their seconds to FILE as JSON. The benchmark runs it in a
process of its own, for imports count once.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolagent.cluster.ray_session import quiet

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
    from toolagent.benchmark.child import run_module

    with tempfile.TemporaryDirectory() as folder:
        parts, output = Path(folder) / "parts.json", Path(folder) / "run"
        started = time.time()
        run_module(
            "toolagent.benchmark.startup", str(parts), "--output-dir", str(output),
            "--stop-env-steps", "1", "--set", "training.updates_per_iteration=1",
            timeout_s=_LIMIT_S,
        )  # fmt: skip
        # The file has one row: nothing is written to it after the first iteration.
        first_update = (output / "progress.jsonl").stat().st_mtime - started
        seconds = json.loads(parts.read_text(encoding="utf-8"))
    own = first_update - sum(seconds.values())
    return {"first_update_s": first_update, **seconds, "own_s": own}


def _run_timed(file: Path, arguments: list[str]) -> int:
    """Runs the command and writes the parts."""
    quiet()
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    import ray
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.algorithms.ppo import PPO  # noqa: F401  what `toolagent.run` imports of it

    seconds["rllib_import_s"] = time.perf_counter() - started
    ray.init = _timed(ray.init, "ray_init_s", seconds)
    AlgorithmConfig.build_algo = _timed(AlgorithmConfig.build_algo, "rllib_build_s", seconds)
    from toolagent import cli
    from toolagent.run.__main__ import command

    code = cli.main(command, arguments)
    file.write_text(json.dumps(seconds), encoding="utf-8")
    return code


def _timed(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Any:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] = time.perf_counter() - started

    return timed


if __name__ == "__main__":
    sys.exit(_run_timed(Path(sys.argv[1]), sys.argv[2:]))
