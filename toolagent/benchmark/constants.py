"""Constants for scaling on paper: what one sampler, one learner and the driver can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_TRIES = 30


def weight_broadcast(algorithm: Any) -> dict[str, float]:
    """Bytes of the weights that env runners get, and seconds to put them into the object store."""
    import ray

    weights = algorithm.get_weights()
    size = sum(array.nbytes for module in weights.values() for array in module.values())
    return {
        "weights_bytes": size,
        "weights_put_s": _median_seconds(lambda: ray.put(weights)),
    }


def fragment_transfer_s(task_name: str, episodes: int) -> float:
    """Seconds to serialise a batch of so many episodes and read it again, through Ray."""
    import ray

    from toolagent.rollouts.episode_batch import empty_batch
    from toolagent.tasks import get_task

    task = get_task(task_name)
    stages = np.full(episodes, task.first_stage, np.int8)
    problems = task.sample(np.random.default_rng(0), stages)
    batch = empty_batch(task, problems.context, problems.stage)
    return _median_seconds(lambda: ray.get(ray.put(batch)))


def scale_on_paper(
    local: Mapping[str, float],
    remote: Mapping[str, float],
    broadcast: Mapping[str, float],
) -> dict[str, float]:
    """How far one learner and one driver reach, from rates measured one at a time.

    Args:
        local: sums of `batched_local`, where sampling and learning take turns on one core, so
            neither slows the other down.
        remote: sums of `batched_runners`, for the driver's own time.
        broadcast: from `weight_broadcast`.
    """
    sampler = local["env_steps"] / local["busy_s"]
    learner = local["env_steps"] / local["learn_s"]  # of what is played, explorers included
    bytes_per_env_step = remote["transfer_bytes"] / remote["env_steps"]
    working = remote["wait_s"] + remote["learn_s"]
    driver_s = max(0.0, remote["seconds"] - working) / remote["updates"]
    steps_per_update = remote["env_steps"] / remote["updates"]
    return {
        "sampler_env_steps_per_s": sampler,
        "learner_env_steps_per_s": learner,
        "runners_per_learner": learner / sampler,
        "bytes_per_env_step": bytes_per_env_step,
        "wire_bytes_per_s_per_learner": learner * bytes_per_env_step,
        **broadcast,
        "driver_s_per_update": driver_s,
        "driver_env_steps_per_s": steps_per_update / driver_s if driver_s else float("inf"),
    }


def _median_seconds(action: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
