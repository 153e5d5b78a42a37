"""One trial: the configured Algorithm itself, with the curriculum's callback, as Tune runs it.

Tune creates its Trainable with the values that it drew, as a flat dict by key of the configuration
('training.lr'). `SearchTrial` turns them into an `AlgorithmConfig` through the same machinery as
`python -m toolagent.run`, and leaves the rest to RLlib: training, checkpoints, resources.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune import PlacementGroupFactory
from ray.tune.result import (
    AUTO_RESULT_KEYS,
    DONE,
    SHOULD_CHECKPOINT,
    STDERR_FILE,
    STDOUT_FILE,
    TRIAL_ID,
    TRIAL_INFO,
)

from toolagent.checkpoints.policy import save_policy
from toolagent.config import (
    Settings,
    add_callbacks,
    build_algorithm_config,
    check_placement,
    config_sha256,
    share_cpus,
)
from toolagent.config.placement import actors_of
from toolagent.curriculum.callback import (
    CURRICULUM,
    curriculum_of,
    env_steps_of,
)
from toolagent.curriculum.stopping import StageCertifier, TrainingClock, first_limit_reached
from toolagent.rollouts.certification import StageAccuracy, certify
from toolagent.tune.search import ACCURACY, ENV_STEPS, Search, SearchSettings, trial_settings

SCORE = "score"  # what Tune maximises
REPORT = "trial"  # where `TrialReport` puts its figures into RLlib's result
_TUNE_S_OWN = (TRIAL_INFO, STDOUT_FILE, STDERR_FILE)
# What is kept of RLlib's result: Tune's own fields. The figures of the trial come on top.
_KEPT = (*AUTO_RESULT_KEYS, DONE, SHOULD_CHECKPOINT, TRIAL_ID)
CERTIFIED = "certified"  # a value of 'ended', beside the names of the limits


@dataclass(frozen=True)
class Share:
    """What one trial may use, so that as many run at once as are wanted."""

    cpus: float
    gpus: float
    nodes: int


def score(settings: SearchSettings, accuracy: float, cost: float | None) -> float:
    """What the search maximises: comparable at any moment, whatever the objective.

    - accuracy: score = accuracy, the mean over the curriculum's stages, 0..1
    - env_steps, seconds: score = accuracy until every stage is certified, and from then on
      1 + (budget - cost) / budget

    so certified trials are above all others, the cheaper the higher, and among the others the one
    that gets further is ahead.

    Args:
        settings: with the objective and the budget.
        accuracy: 0..1.
        cost: env steps or seconds until certified; None if it is not.
    """
    if settings.objective == ACCURACY or cost is None:
        return accuracy
    budget = settings.budget[1]
    return 1 + max(0.0, budget - cost) / budget


def trial_class(search: Search, share: Share) -> type[Algorithm]:
    """The Trainable for this search: the base's Algorithm class, made from a trial's values."""
    algorithm = build_algorithm_config(search.base).algo_class
    assert algorithm is not None
    return type(  # type: ignore[return-value]
        f"{algorithm.__name__}Trial",
        (SearchTrial, algorithm),
        {
            "__doc__": f"{algorithm.__name__}, made from a trial's values.",
            "__module__": __name__,
            "base_yaml": search.base_yaml,
            "search": search.settings,
            "share": share,
        },
    )


class SearchTrial:
    """What an Algorithm needs to be a trial; mixed in by `trial_class`."""

    base_yaml: str
    search: SearchSettings
    share: Share

    def __init__(self, config: dict[str, Any], **kwargs: Any):
        self.values = {key: value for key, value in config.items() if key not in _TUNE_S_OWN}
        self.settings = trial_settings(self.base_yaml, self.values)
        algorithm_config = self._algorithm_config(self.settings)
        super().__init__(algorithm_config, **kwargs)  # type: ignore[call-arg]
        # An AlgorithmConfig has no place for what Tune tells a Trainable beside the values.
        self._trial_info = config.get(TRIAL_INFO)

    @classmethod
    def _algorithm_config(cls, settings: Settings) -> Any:
        config, _ = fit(build_algorithm_config(settings), cls.share)
        return add_callbacks(config, [functools.partial(TrialReport, settings, cls.search)])

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """RLlib's request for these values."""
        try:
            algorithm_config = cls._algorithm_config(trial_settings(cls.base_yaml, config))
        except ValueError:  # the trial fails with it, in its own process; the search goes on
            return PlacementGroupFactory([{"CPU": 1}])
        return super().default_resource_request(algorithm_config.to_dict())  # type: ignore[misc]

    def __repr__(self) -> str:
        """Ray asks an actor for it when its constructor raises; RLlib's own fails there, in place
        of telling the cause."""
        return type(self).__name__

    def train(self) -> dict[str, Any]:
        """RLlib's iteration; of its result, what a search can use."""
        result = super().train()  # type: ignore[misc]
        kept = {name: result[name] for name in _KEPT if name in result}
        return kept | result[REPORT] | {"config": self.values}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """RLlib's checkpoint, and the agent in plain files for `toolagent.evaluate`."""
        super().save_checkpoint(checkpoint_dir)  # type: ignore[misc]
        report = next(c for c in self.callbacks if isinstance(c, TrialReport))  # type: ignore[attr-defined]
        report.save_policy(self, Path(checkpoint_dir))


def fit(algorithm_config: Any, share: Share) -> tuple[Any, list[str]]:
    """Makes a trial fit its share of the cluster, and says what was changed.

    Under Tune the trial's own process is reserved a CPU too.
    """
    main = min(1.0, share.cpus / 2) if algorithm_config.num_env_runners else min(1.0, share.cpus)
    fitted, notes = share_cpus(algorithm_config, share.cpus - main, share.nodes)
    # Of custom resources Tune knows how many trials they are enough for.
    custom = {name: math.inf for group in actors_of(fitted) for name in group.request}
    here = custom | {"CPU": share.cpus, "GPU": share.gpus}
    check_placement(fitted, [here], here)
    if main < 1:
        fitted = fitted.copy(copy_frozen=False)
        # RLlib's hint says int; Ray takes fractions.
        fitted.resources(num_cpus_for_main_process=main)  # type: ignore[arg-type]
        if not fitted.num_learners:
            fitted.learners(num_cpus_per_learner=main)
    return fitted, notes


class TrialReport(RLlibCallback):
    """Adds the trial's figures to a result, and ends it: certified, or a limit is reached.

    To be listed after `CurriculumCallback`, whose measurements it reads.
    """

    def __init__(self, settings: Settings, search: SearchSettings):
        super().__init__()
        self.settings = settings
        self.search = search
        self.stages: list[StageAccuracy] = []  # certified at the end of the trial
        self._clock = TrainingClock()
        self._checkpointed_s = 0.0
        self._env_steps = 0

    def on_algorithm_init(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Finds the curriculum; the clock begins here."""
        self.curriculum = curriculum_of(algorithm)
        self._certifier = StageCertifier(self.curriculum)
        self._clock = TrainingClock()

        def end_at_limit() -> None:
            """After the update under way; an iteration of RLlib's own PPO runs to its end."""
            if self._limit_reached(algorithm.env_steps):
                algorithm.end_iteration()

        algorithm.between_updates = end_at_limit

    def _limit_reached(self, env_steps: int) -> str | None:
        limits = self.search.trial
        return first_limit_reached(
            (
                ("env_steps", limits.max_env_steps, env_steps),
                ("seconds", limits.max_time_s, self._clock.seconds),
            )
        )

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """Certifies where a measurement was faultless, and decides whether the trial is over."""
        self._env_steps = max(env_steps_of(result), self._env_steps)
        certified = bool(result[CURRICULUM]["measured"]) and self._certifier.all_solved()
        ended = CERTIFIED if certified else self._limit_reached(self._env_steps)
        stages = sorted(self.settings.curriculum.stages)
        if ended:
            network = self.curriculum.refresh_network(algorithm)
            known = self._certifier.found if certified else None
            self.stages = certify(network, self.curriculum.task, stages, known)
            accuracies = {str(row.stage): row.accuracy for row in self.stages}
        else:
            measured = result[CURRICULUM]["accuracy"]
            accuracies = {str(s): measured[str(s)] for s in stages if str(s) in measured}
        accuracy = sum(accuracies.values()) / len(accuracies) if accuracies else 0.0
        seconds = self._clock.seconds
        spent = {"env_steps": float(self._env_steps), "seconds": seconds}
        cost = spent[self.search.budget[0]] if certified else None
        result[REPORT] = {
            SCORE: score(self.search, accuracy, cost),
            "accuracy": accuracy,
            **{f"accuracy_stage_{stage}": value for stage, value in accuracies.items()},
            "certified": certified,
            "ended": ended,
            ENV_STEPS: self._env_steps,
            "seconds": seconds,
            "stage": result[CURRICULUM]["next_stage"],
        }
        result["done"] = ended is not None
        if seconds - self._checkpointed_s >= self.settings.run.checkpoint_every_s:
            self._checkpointed_s = seconds
            result["should_checkpoint"] = True

    def save_policy(self, algorithm: Any, folder: Path) -> None:
        """The agent as it is now."""
        save_policy(
            folder,
            self.curriculum.refresh_network(algorithm),
            self.settings.task,
            env_steps=self._env_steps,
            iteration=int(algorithm.iteration),
            seed=self.settings.seed,
            stages=[stage.record() for stage in self.stages],
            trained_stages=self.settings.curriculum.trained_stages(self.curriculum.task.stages),
            config_sha256=config_sha256(self.settings),
        )

    def get_state(self) -> dict[str, Any]:
        """For the trial's checkpoint (`learning.callback_state`)."""
        return {"seconds": self._clock.seconds, "env_steps": self._env_steps}

    def set_state(self, state: dict[str, Any], algorithm: Any) -> None:
        """The inverse of `get_state`."""
        self._checkpointed_s, self._env_steps = state["seconds"], state["env_steps"]
        self._clock = TrainingClock(state["seconds"])
