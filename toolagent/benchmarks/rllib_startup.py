"""How long Ray and RLlib take to start by themselves; prints JSON.

`python -m toolagent.benchmarks.rllib_startup`: the import, `ray.init()` as a run does it, and the
smallest Algorithm with one env runner, nothing of toolagent's in it. Run by the benchmark in a
process of its own, for imports count once.
"""

from __future__ import annotations

import json
import time

from toolagent.session.ray_session import quiet, ray_session


def main() -> None:
    """Measures and prints."""
    quiet()
    started = time.perf_counter()
    from ray.rllib.algorithms.ppo import PPOConfig

    imported = time.perf_counter()
    with ray_session(None, dashboard=True):
        initialised = time.perf_counter()
        config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=1)
        algorithm = config.build_algo()
        built = time.perf_counter()
        algorithm.stop()
    print(
        json.dumps(
            {
                "rllib_import_s": imported - started,
                "ray_init_s": initialised - imported,
                "rllib_build_s": built - initialised,
            }
        )
    )


if __name__ == "__main__":
    main()
