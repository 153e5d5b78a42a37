"""`toolagent.run` with a stopwatch on the parts of its start that are Ray's and RLlib's.

`python -m toolagent.benchmark.traced_start FILE [arguments of toolagent.run]` writes the seconds
to FILE as JSON. Run by the benchmark in a process of its own, for imports count once.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolagent.cluster.ray_session import quiet


def main(file: Path, arguments: list[str]) -> int:
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
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
