"""The actors of a config, and what each of them asks a node for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

Offer = Mapping[str, float]  # of a node: {"CPU": 8.0, "GPU": 1.0, "spot": 8.0}


@dataclass(frozen=True)
class Group:
    """Actors of one kind."""

    noun: str
    count: int
    request: Offer  # of each

    @property
    def cpus(self) -> float:
        """Of each."""
        return self.request["CPU"]

    @property
    def gpus(self) -> float:
        """Of each."""
        return self.request["GPU"]

    @property
    def all_cpus(self) -> float:
        """Of all together."""
        return self.count * self.cpus


class Actors(NamedTuple):
    """All actors of a config. The driver, with the local learner, is none."""

    runners: Group
    evaluators: Group
    learners: Group
    aggregators: Group


def actors_of(config: AlgorithmConfig) -> Actors:
    """The actors that a config asks for."""
    evaluation = config.evaluation_config or {}
    cpus = _number(config.num_cpus_per_env_runner)
    gpus = _number(config.num_gpus_per_env_runner)
    learner_gpus = _number(config.num_gpus_per_learner)
    learner_cpus = config.num_cpus_per_learner
    if learner_cpus == "auto":  # as in RLlib's LearnerGroup
        learner_cpus = 0 if learner_gpus else 1
    custom: Any = config.custom_resources_per_env_runner or {}
    own_cpus = _number(evaluation.get("num_cpus_per_env_runner", cpus))
    own_gpus = _number(evaluation.get("num_gpus_per_env_runner", gpus))
    learners = {"CPU": _number(learner_cpus), "GPU": learner_gpus}
    learners |= config.custom_resources_per_learner or {}
    num_learners = int(_number(config.num_learners))
    # They take a whole CPU each, whatever the config says.
    aggregators = max(num_learners, 1) * int(_number(config.num_aggregator_actors_per_learner))
    return Actors(
        Group(
            "env runner",
            int(_number(config.num_env_runners)),
            {"CPU": cpus, "GPU": gpus, **custom},
        ),
        Group(
            "evaluation runner",
            int(_number(config.evaluation_num_env_runners)),
            {"CPU": own_cpus, "GPU": own_gpus, **custom},
        ),
        Group("learner", num_learners, learners),
        Group("aggregator", aggregators, {"CPU": 1.0, "GPU": 0.0}),
    )


def counted(number: float, noun: str) -> str:
    """'1 learner', '0.5 CPUs'."""
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _number(value: object) -> float:
    """RLlib's hints allow null and text everywhere."""
    return float(value) if isinstance(value, (int, float)) else 0.0
