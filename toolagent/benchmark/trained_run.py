"""Rows of the benchmark that measure a run as it is once it has trained."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import LEARNER_RESULTS

from toolagent.benchmark import PIPELINE_ROWS
from toolagent.benchmark.figures import exploration_figures
from toolagent.benchmark.rows import RLlibRow
from toolagent.checkpoints.policy import Policy, load_policy
from toolagent.checkpoints.run_folder import CONFIG
from toolagent.config import Settings, build_algorithm_config, load_settings
from toolagent.errors import UserError
from toolagent.learning.exploration import RATE
from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.models.rl_module import build_network
from toolagent.run.start import load_weights

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

REPLAYED = "replayed_episodes"

# The shares of solved episodes, on which the mix of problems depends, begin at 0: after so many
# updates they are within a hundredth of what they come to.
SETTLED_UPDATES = math.ceil(math.log(0.01) / math.log(1 - RATE))
WARM_UP_LIMIT_S = 120.0
_NEVER = math.nextafter(1.0, 0.0)  # the largest share that `explore_until_solved` may be


@dataclass(frozen=True)
class TrainedRun:
    """A run's configuration, and the weights that it came to."""

    folder: Path
    settings: Settings
    policy: Policy

    @property
    def task(self) -> str:
        """Its name or reference."""
        return self.settings.task

    @property
    def stage(self) -> int:
        """Of the curriculum's last level."""
        return self.settings.curriculum.levels[-1].stage

    @classmethod
    def read(cls, folder: Path) -> TrainedRun:
        """The run in `DIR` of `python -m toolagent.run --output-dir DIR`.

        Raises:
            UserError: there is none, it has no sound checkpoint, or it can't be measured.
        """
        if not folder.is_dir():
            raise UserError(f"--run {folder}: there is no such folder")
        file = folder / CONFIG
        if not file.is_file():
            raise UserError(f"--run {folder}: holds no run (no {CONFIG})")
        settings = load_settings(file)
        if settings.algorithm != "toolagent":
            raise UserError(
                f"--run {folder}: its algorithm is {settings.algorithm}; "
                "only runs of algorithm toolagent can be measured"
            )
        config = build_algorithm_config(settings)  # imports the network, if it is another module's
        run = cls(folder, settings, load_policy(folder, expected_task=settings.task))
        run._check(config)
        return run

    def config(self, row: str) -> AlgorithmConfig:
        """The run's configuration with the workload of that row of `PIPELINE_ROWS`.

        Only the last level's stage (and the configured share of earlier ones), at learning rate 0;
        exploring does not end.
        """
        workload = (
            f"curriculum.levels=[{{stage: {self.stage}}}]",
            "training.lr=0.0",
            f"training.explore_until_solved={_NEVER!r}",
        )
        settings = load_settings(self.folder / CONFIG, (*workload, *PIPELINE_ROWS[row]))
        return build_algorithm_config(settings)

    def row(self, name: str, config: AlgorithmConfig, cpus: float) -> TrainedRow:
        """The row of that name; `config` is from `config(name)`."""
        return TrainedRow(name, config, self.policy, cpus)

    def record(self) -> dict[str, Any]:
        """What was measured, in plain values."""
        metadata = self.policy.metadata
        return {
            "folder": str(self.folder),
            "task": self.task,
            "stage": self.stage,
            "checkpoint": self.policy.folder.name,
            **{name: metadata.get(name) for name in ("env_steps", "weights_sha256", "created")},
        }

    def _check(self, config: Any) -> None:
        """Refuses what the rows can't be built from."""
        for name in ("num_gpus_per_learner", "num_gpus_per_env_runner"):
            if getattr(config, name):
                raise UserError(
                    f"--run {self.folder}: its {name} is {getattr(config, name)}; "
                    "the benchmark measures CPUs only"
                )
        spec, network = config.rl_module_spec, self.policy.network
        configured = build_network(spec.model_config)
        if (type(configured), configured.options) != (type(network), network.options):
            raise UserError(
                f"--run {self.folder}: the network in {self.policy.folder.name} is not the one in "
                f"{CONFIG}; has one of them been changed?"
            )


class ReplayCountingLearner(EpisodeColumnsLearner):
    """Counts the replayed episodes in its updates, as the metric `replayed_episodes`."""

    @override(EpisodeColumnsLearner)
    def _log_steps_trained_metrics(self, batch: Any) -> None:
        super()._log_steps_trained_metrics(batch)
        for module_id, columns in batch.policy_batches.items():
            replayed = int(columns["replayed"].sum())
            self.metrics.log_value((module_id, REPLAYED), replayed, reduce="sum")


class TrainedRow(RLlibRow):
    """A row that goes on with a trained policy.

    Args:
        name: of the row.
        config: from `TrainedRun.config`.
        policy: whose weights are put into learners and env runners.
        cpus: how many of the cluster's CPUs its actors may ask for.
    """

    def __init__(self, name: str, config: AlgorithmConfig, policy: Policy, cpus: float):
        config.learners(learner_class=ReplayCountingLearner)
        super().__init__(name, config, cpus)
        load_weights(self.algorithm, policy)
        self.warm_up_updates = 0

    @override(RLlibRow)
    def warm_up(self, seconds: float) -> None:
        """Until things are as in a long run, however long that takes; `WARM_UP_LIMIT_S` at most.

        The mix of problems has settled, and where replay is configured there is something to
        replay: the store of what explorers found begins empty.
        """
        config = self.algorithm.config
        missing = config.replay_coeff > 0 and config.replay_episodes > 0
        deadline = time.perf_counter() + WARM_UP_LIMIT_S
        while self.warm_up_updates < SETTLED_UPDATES or missing:
            if self.warm_up_updates and time.perf_counter() > deadline:
                break
            if _replayed(self.algorithm.train()):
                missing = False
            self.warm_up_updates += config.updates_per_iteration

    @override(RLlibRow)
    def sums(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        # A replayed episode counts once an update, however many passes are made over it.
        replayed = sum(map(_replayed, results)) / self.algorithm.config.num_epochs
        return super().sums(results) | {REPLAYED: replayed}

    @override(RLlibRow)
    def more_figures(self, sums: Mapping[str, float]) -> dict[str, Any]:
        config = self.algorithm.config
        names = ("explorer_share", "replay_coeff", "replay_episodes")
        configured = {name: getattr(config, name) for name in names}
        return {
            "warm_up_updates": self.warm_up_updates,
            "exploration": configured | exploration_figures(sums),
        }


def _replayed(result: dict[str, Any]) -> float:
    """Replayed episodes in the iteration's updates."""
    learner = result.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
    return float(learner.get(REPLAYED, 0.0))
