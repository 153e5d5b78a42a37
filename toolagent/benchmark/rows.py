"""What the benchmark measures: each row is something that trains, a block at a time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from toolagent.benchmark.bare_loop import BareLoop
from toolagent.benchmark.figures import Block
from toolagent.benchmark.memory import memory_mib
from toolagent.config import build_algorithm_config, load_settings, resolve_resources
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
NO_EXPLORATION = ("training.explorer_share=0.0", "training.replay_coeff=0.0")
LOCAL = "env_runners.num_env_runners=0"
# Row -> config and what is changed in it.
RLLIB_ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "stock_rllib": ("ppo", ()),
    "batched_local": ("default", (LOCAL,)),
    "batched_runners": ("default", ()),
    # The same without exploration, as a run is once its stage is learned: the bare loop's work.
    "plain_local": ("default", (*NO_EXPLORATION, LOCAL)),
    "plain_runners": ("default", NO_EXPLORATION),
}
ROWS = ("bare_loop", *RLLIB_ROWS)

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
_BYTES, _FRAGMENTS, _UPDATES = "transfer_bytes", "fragments", "updates"


class Row(Protocol):
    """Something that trains."""

    name: str

    def warm_up(self, seconds: float) -> None:
        """Trains, before anything is measured."""
        ...

    def block(self, seconds: float, others: Sequence[int] = ()) -> Block:
        """Trains for at least that long; the processes `others` are not of this row."""
        ...

    def process_ids(self) -> list[int]:
        """Of processes that this row alone uses."""
        ...

    def close(self) -> None:
        """Ends them."""
        ...


class BareRow:
    """The row `bare_loop`."""

    def __init__(self) -> None:
        self.name = "bare_loop"
        settings = load_settings("default", WORKLOAD, check_sections=False)
        self.loop = BareLoop(
            settings.task,
            STAGE,
            EARLIER_STAGE_SHARE,
            settings.sections["training"],
            settings.sections["rl_module"]["model_config"]["embedding_size"],
        )
        self._memory_mib: float | None = None

    def warm_up(self, seconds: float) -> None:
        """A block that is not counted."""
        self.block(seconds)

    def block(self, seconds: float, others: Sequence[int] = ()) -> Block:
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

    def process_ids(self) -> list[int]:
        """None but this process."""
        return []

    def close(self) -> None:
        """Nothing to end."""


def shipped_config(name: str, overrides: Sequence[str]) -> AlgorithmConfig:
    """The shipped config of that name, with the benchmark's workload and these overrides."""
    from ray.rllib.callbacks.callbacks import RLlibCallback

    config = build_algorithm_config(load_settings(name, (*WORKLOAD, *overrides)))
    # The stage is the workload's: without the curriculum, whose measurements are not training.
    return config.callbacks(callbacks_class=RLlibCallback)


class RLlibRow:
    """An Algorithm that is trained by `train()`; it shares the CPUs with others.

    Args:
        name: of the row.
        config: of the algorithm.
        cpus: how many of the cluster's CPUs its actors may ask for.
    """

    def __init__(self, name: str, config: AlgorithmConfig, cpus: float):
        self.name = name
        resolved, _ = resolve_resources(config, cpus, 0.0)
        self.algorithm: Any = resolved.build_algo()
        self.num_env_runners = int(resolved.num_env_runners or 0)
        updates = getattr(resolved, "updates_per_iteration", None)
        # After a pause runners report that they idled: two fragments of each are let pass.
        self._untimed = math.ceil(2 * self.num_env_runners / updates) if updates else 0
        self._lifetime = (0, 0)

    def warm_up(self, seconds: float) -> None:
        """A block that is not counted."""
        self.block(seconds)

    def block(self, seconds: float, others: Sequence[int] = ()) -> Block:
        """Iterations until the time is up; the pipeline is filled before the clock starts."""
        for _ in range(self._untimed):
            self._note(self.algorithm.train())
        before = self._lifetime
        sums: dict[str, float] = dict.fromkeys((*_SUMS, _BYTES, _FRAGMENTS, _UPDATES), 0.0)
        learned_episodes = 0.0
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            result = self.algorithm.train()
            self._note(result)
            if PIPELINE in result:
                self.add(result, sums)
                pipeline = result[PIPELINE]
                # Explorers' episodes are not learned from and not in this mean.
                mean_length = float(result["env_runners"]["episode_len_mean"])
                learned_episodes += float(pipeline["trained_env_steps"]) / mean_length
        if sums["env_steps"]:
            sums[_FRAGMENTS] = sums["episodes"] / self.algorithm.config.num_envs_per_env_runner
            env_steps, episodes = int(sums["trained_env_steps"]), round(learned_episodes)
        else:  # stock RLlib learns from all that it samples
            env_steps, episodes = (
                after - earlier for after, earlier in zip(self._lifetime, before, strict=True)
            )
        return Block(env_steps, episodes, elapsed, memory_mib(others), sums)

    def add(self, result: dict[str, Any], sums: dict[str, float]) -> None:
        """Adds one iteration of the batched pipeline to the block's sums."""
        pipeline = result[PIPELINE]
        for name in _SUMS:
            sums[name] += float(pipeline[name])
        sums[_BYTES] += float(pipeline["bytes_per_env_step"] * pipeline["env_steps"])
        sums[_UPDATES] += self.algorithm.config.updates_per_iteration

    def more_figures(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """What there is to say of this row besides what is said of all.

        Args:
            sums: `figures.total` of its blocks.
        """
        return {}

    def process_ids(self) -> list[int]:
        """Of its remote env runners."""
        group = self.algorithm.env_runner_group
        return group.foreach_env_runner(_process_id, local_env_runner=False)

    def close(self) -> None:
        """Stops the algorithm and its actors."""
        self.algorithm.stop()

    def _note(self, result: dict[str, Any]) -> None:
        runners = result["env_runners"]
        self._lifetime = (
            int(runners["num_env_steps_sampled_lifetime"]),
            int(runners["num_episodes_lifetime"]),
        )


def _process_id(env_runner: Any) -> int:
    return os.getpid()
