"""Fitting the actors of a run onto the CPUs and GPUs there are.

Outside Tune nothing is reserved as a whole: every actor asks Ray for its own share, and one that
cannot get it waits for ever. The driver (with the local learner) is no actor and asks for nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolagent.config.actors import Actors, actors_of, counted
from toolagent.errors import UserError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_SMALLEST_SHARE = 0.0001  # Ray's unit of a resource


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
    actors = actors_of(config)
    _check_gpus(actors, cluster_gpus, num_nodes)
    runners, evaluators, learners, aggregators = actors
    cpus = cluster_cpus - aggregators.all_cpus
    if runners.all_cpus + evaluators.all_cpus + learners.all_cpus <= cpus:
        return config, []
    if cpus <= 0:
        raise UserError(
            "learners.num_aggregator_actors_per_learner: "
            f"{counted(aggregators.count, aggregators.noun)} with a CPU each, "
            f"there are {cluster_cpus:g}; use 0"
        )
    sharing = [group for group in (runners, evaluators) if group.all_cpus]
    if sharing and learners.all_cpus < cpus:
        cpus -= learners.all_cpus
    else:
        sharing.append(learners)
    share = _share(cpus, sum(group.count for group in sharing), num_nodes)
    names = " and ".join(counted(group.count, group.noun) for group in sharing)
    line = f"{names} share {counted(cpus, 'CPU')} ({share:g} CPU each)"
    return _shared(config, share, learners in sharing), [line]


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
            f"{counted(cpus, 'CPU')}; use at most {int(cpus / _SMALLEST_SHARE)}"
        )
    return share


def _shared(config: AlgorithmConfig, share: float, learners_too: bool) -> AlgorithmConfig:
    """A copy in which nobody that shares asks for more than the share."""
    runners, evaluators, learners, _ = actors_of(config)
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


def _check_gpus(actors: Actors, cluster_gpus: float, num_nodes: int) -> None:
    runners, evaluators, learners, _ = actors
    place = "this machine" if num_nodes == 1 else "this cluster"
    num_learners = max(learners.count, 1)  # with none, the driver itself is the learner
    asked = num_learners * learners.gpus
    if asked > cluster_gpus:
        raise UserError(
            f"learners.num_gpus_per_learner: asks for {counted(asked, 'GPU')}, {place} has "
            f"{cluster_gpus:g}; use {cluster_gpus / num_learners:g}"
        )
    by_runners = runners.count * runners.gpus + evaluators.count * evaluators.gpus
    if by_runners > cluster_gpus - asked:
        raise UserError(
            f"env_runners.num_gpus_per_env_runner: asks for {counted(by_runners, 'GPU')}, {place} "
            f"has {cluster_gpus - asked:g} beside the learners'; use 0"
        )
