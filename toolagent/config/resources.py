"""Fitting the actors of a run onto the CPUs and GPUs there are.

Outside Tune nothing is reserved as a whole: every actor asks Ray for its own share, and one that
cannot get it waits for ever. The driver (with the local learner) is no actor and asks for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolagent.errors import UserError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_SMALLEST_SHARE = 0.0001  # Ray's unit of a resource


@dataclass(frozen=True)
class _Group:
    """Actors of one kind."""

    noun: str
    count: int
    cpus: float  # each
    gpus: float  # each

    @property
    def all_cpus(self) -> float:
        return self.count * self.cpus


def resolve_resources(
    config: AlgorithmConfig, cluster_cpus: float, cluster_gpus: float, num_nodes: int = 1
) -> tuple[AlgorithmConfig, list[str]]:
    """Makes the actors fit: they share the CPUs where they ask for more than there are.

    Learners keep what they ask for as long as that leaves something for the runners to share.

    Args:
        config: is not changed.
        cluster_cpus: CPUs of all nodes together.
        cluster_gpus: GPUs of all nodes together.
        num_nodes: over how many nodes; an actor cannot use the remainders of two.

    Returns:
        The config, changed where necessary, and what was changed: one line a change.

    Raises:
        UserError: more GPUs are asked for than there are, or the actors are too many to share.
    """
    runners, evaluators, learners = _groups(config)
    _check_gpus(runners, evaluators, learners, cluster_gpus, num_nodes)
    aggregators = _aggregators(config, learners)
    cpus = cluster_cpus - aggregators
    if runners.all_cpus + evaluators.all_cpus + learners.all_cpus <= cpus:
        return config, []
    if cpus <= 0:
        raise UserError(
            f"learners.num_aggregator_actors_per_learner: {_counted(aggregators, 'aggregator')} "
            f"with a CPU each, there are {cluster_cpus:g}; use 0"
        )
    sharing = [group for group in (runners, evaluators) if group.all_cpus]
    if sharing and learners.all_cpus < cpus:
        cpus -= learners.all_cpus
    else:
        sharing.append(learners)
    share = _share(cpus, sum(group.count for group in sharing), num_nodes)
    names = " and ".join(_counted(group.count, group.noun) for group in sharing)
    line = f"{names} share {_counted(cpus, 'CPU')} ({share:g} CPU each)"
    return _shared(config, share, learners in sharing), [line]


def _groups(config: AlgorithmConfig) -> tuple[_Group, _Group, _Group]:
    """Env runners, evaluation runners and remote learners, with what each actor asks for."""
    evaluation = config.evaluation_config or {}
    cpus = _number(config.num_cpus_per_env_runner)
    gpus = _number(config.num_gpus_per_env_runner)
    learner_gpus = _number(config.num_gpus_per_learner)
    learner_cpus = config.num_cpus_per_learner
    if learner_cpus == "auto":  # as in RLlib's LearnerGroup
        learner_cpus = 0 if learner_gpus else 1
    return (
        _Group("env runner", int(_number(config.num_env_runners)), cpus, gpus),
        _Group(
            "evaluation runner",
            int(_number(config.evaluation_num_env_runners)),
            _number(evaluation.get("num_cpus_per_env_runner", cpus)),
            _number(evaluation.get("num_gpus_per_env_runner", gpus)),
        ),
        _Group("learner", int(_number(config.num_learners)), _number(learner_cpus), learner_gpus),
    )


def _aggregators(config: AlgorithmConfig, learners: _Group) -> int:
    """RLlib's aggregator actors take a whole CPU each, whatever the config says."""
    return max(learners.count, 1) * int(_number(config.num_aggregator_actors_per_learner))


def _number(value: object) -> float:
    """RLlib's hints allow null and text everywhere."""
    return float(value) if isinstance(value, (int, float)) else 0.0


def _share(cpus: float, actors: int, num_nodes: int) -> float:
    """CPUs for each, so that all fit even if every node is left with a remainder.

    sum over nodes of floor(cpus_i / share) > cpus / share - num_nodes >= actors - 1
    """
    exact = cpus / (actors + num_nodes - 1)
    step = 0.01 if exact >= 0.01 else _SMALLEST_SHARE
    share = round(math.floor(exact / step + 1e-9) * step, 4)  # 0.29 / 0.01 is 28.999...
    if share < _SMALLEST_SHARE:
        raise UserError(
            f"env_runners.num_env_runners: {actors} actors are too many for "
            f"{_counted(cpus, 'CPU')}; use at most {int(cpus / _SMALLEST_SHARE)}"
        )
    return share


def _shared(config: AlgorithmConfig, share: float, learners_too: bool) -> AlgorithmConfig:
    """A copy in which nobody that shares asks for more than the share."""
    runners, evaluators, learners = _groups(config)
    changed = config.copy(copy_frozen=False)
    # RLlib's hint says int; Ray takes fractions.
    changed.env_runners(num_cpus_per_env_runner=min(runners.cpus, share))  # type: ignore[arg-type]
    if "num_cpus_per_env_runner" in (config.evaluation_config or {}):
        changed.evaluation(
            evaluation_config={"num_cpus_per_env_runner": min(evaluators.cpus, share)}
        )
    if learners_too:
        changed.learners(num_cpus_per_learner=min(learners.cpus, share))
    return changed


def _check_gpus(
    runners: _Group, evaluators: _Group, learners: _Group, cluster_gpus: float, num_nodes: int
) -> None:
    place = "this machine" if num_nodes == 1 else "this cluster"
    num_learners = max(learners.count, 1)  # with none, the driver itself is the learner
    asked = num_learners * learners.gpus
    if asked > cluster_gpus:
        raise UserError(
            f"learners.num_gpus_per_learner: asks for {_counted(asked, 'GPU')}, {place} has "
            f"{cluster_gpus:g}; use {cluster_gpus / num_learners:g}"
        )
    by_runners = runners.count * runners.gpus + evaluators.count * evaluators.gpus
    if by_runners > cluster_gpus - asked:
        raise UserError(
            f"env_runners.num_gpus_per_env_runner: asks for {_counted(by_runners, 'GPU')}, {place} "
            f"has {cluster_gpus - asked:g} beside the learners'; use 0"
        )


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")
