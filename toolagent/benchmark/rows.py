"""What the benchmark measures: each row is something that trains, a block at a time."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from toolagent.benchmark.bare_loop import BareLoop
from toolagent.benchmark.figures import Block
from toolagent.config import build_algorithm_config, load_settings, share_cpus
from toolagent.figures import PIPELINE

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

STAGE, EARLIER_STAGE_SHARE = 2, 0.3
# The same work for every row, however long it has trained before: see `toolagent.benchmark`.
WORKLOAD = (
    f"curriculum.levels=[{{stage: {STAGE}}}]",
    f"curriculum.earlier_stage_share={EARLIER_STAGE_SHARE}",
    "training.lr=0.0",
)
_SUMS = (
    "wait_s",
    "learn_s",
    "sync_s",
    "busy_s",
    "inference_s",
    "machine_s",
    "env_steps",
    "trained_env_steps",
    "episodes",
    "dropped_episodes",
)


class Row:
    """Something that trains."""

    name: str

    def warm_up(self, seconds: float) -> None:
        """Trains, before anything is measured: by default a block that is not counted."""
        self.block(seconds)

    def block(self, seconds: float, others: Collection[int] = ()) -> Block:
        """Trains for at least that long; the processes `others` are not of this row."""
        raise NotImplementedError

    def process_ids(self) -> list[int]:
        """Of processes that this row alone uses."""
        return []

    def close(self) -> None:
        """Ends them."""


class BareRow(Row):
    """The row `bare_loop`."""

    name = "bare_loop"

    def __init__(self) -> None:
        settings = load_settings("default", WORKLOAD)
        self.loop = BareLoop(
            settings.task,
            STAGE,
            EARLIER_STAGE_SHARE,
            settings.sections["training"],
            settings.sections["rl_module"]["model_config"]["embedding_size"],
        )
        self._memory_mib: float | None = None

    def block(self, seconds: float, others: Collection[int] = ()) -> Block:
        """Updates until the time is up."""
        if self._memory_mib is None:
            # Read at the first block, the warm-up, before Ray is in this process.
            self.loop.update()
            self._memory_mib = memory_mib()
        env_steps = episodes = 0
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            more_steps, more_episodes = self.loop.update()
            env_steps, episodes = env_steps + more_steps, episodes + more_episodes
        return Block(env_steps, episodes, elapsed, self._memory_mib)


def shipped_config(name: str, overrides: Sequence[str]) -> AlgorithmConfig:
    """The shipped config of that name, with the benchmark's workload and these overrides."""
    from ray.rllib.callbacks.callbacks import RLlibCallback

    config = build_algorithm_config(load_settings(name, (*WORKLOAD, *overrides)))
    # The stage is the workload's: without the curriculum, whose measurements are not training.
    return config.callbacks(callbacks_class=RLlibCallback)


class RLlibRow(Row):
    """An Algorithm that is trained by `train()`; it shares the CPUs with others.

    Args:
        name: of the row.
        config: of the algorithm.
        cpus: how many of the cluster's CPUs its actors may ask for.
    """

    def __init__(self, name: str, config: AlgorithmConfig, cpus: float):
        self.name = name
        resolved, _ = share_cpus(config, cpus)
        self.algorithm: Any = resolved.build_algo()
        self.num_env_runners = int(resolved.num_env_runners or 0)
        self._updates: Any = getattr(resolved, "updates_per_iteration", None)
        # After a pause runners report that they idled: two fragments of each are let pass.
        self._untimed = math.ceil(2 * self.num_env_runners / self._updates) if self._updates else 0

    def block(self, seconds: float, others: Collection[int] = ()) -> Block:
        """Iterations until the time is up; the pipeline is filled before the clock starts."""
        for _ in range(self._untimed):
            self.algorithm.train()
        results = []
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            results.append(self.algorithm.train())
        if self._updates is None:  # stock RLlib learns from all that it samples
            sampled = [result["env_runners"] for result in results]
            env_steps = sum(int(each["num_env_steps_sampled"]) for each in sampled)
            episodes = sum(int(each["num_episodes"]) for each in sampled)
            return Block(env_steps, episodes, elapsed, memory_mib(others))
        sums = self.sums(results)
        # Explorers' episodes are not learned from and not in this mean.
        episodes = sum(
            result[PIPELINE]["trained_env_steps"] / result["env_runners"]["episode_len_mean"]
            for result in results
        )
        env_steps = int(sums["trained_env_steps"])
        return Block(env_steps, round(episodes), elapsed, memory_mib(others), sums)

    def sums(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        """The sums over a block's iterations of the batched pipeline."""
        parts = [result[PIPELINE] for result in results]
        sums = {name: float(sum(part[name] for part in parts)) for name in _SUMS}
        return sums | {
            "transfer_bytes": sum(part["bytes_per_env_step"] * part["env_steps"] for part in parts),
            "fragments": sums["episodes"] / self.algorithm.config.num_envs_per_env_runner,
            "updates": float(self._updates * len(results)),
        }

    def more_figures(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """What there is to say of this row besides what is said of all.

        Args:
            sums: `figures.total` of its blocks.
        """
        return {}

    def process_ids(self) -> list[int]:
        """Of its remote env runners."""
        group = self.algorithm.env_runner_group
        return group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)

    def close(self) -> None:
        """Stops the algorithm and its actors."""
        self.algorithm.stop()


def memory_mib(without: Collection[int] = ()) -> float:
    """MiB of this process and all that it started, directly or not: Ray's services and actors.

    A page that several processes share counts once (PSS); where the system does not tell PSS it
    is RSS, which counts shared pages several times.

    Args:
        without: process ids that are not counted.
    """
    used, this = 0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        if process.pid not in without:
            with contextlib.suppress(psutil.Error):  # it has ended
                memory = process.memory_full_info()
                used += getattr(memory, "pss", memory.rss)
    return used / 2**20
