"""Fitting the actors of a run onto the CPUs and GPUs there are.

Outside Tune nothing is reserved as a whole: every actor asks Ray for its own share, and one that
cannot get it waits for ever. The driver (with the local learner) is no actor and asks for nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolagent.errors import UserError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_SMALLEST_SHARE = 0.0001  # Ray's unit of a resource


def resolve_resources(
    config: AlgorithmConfig, cluster_cpus: float, cluster_gpus: float, num_nodes: int = 1
) -> tuple[AlgorithmConfig, list[str]]:
    """Makes the actors fit: they share the CPUs where they ask for more than there are.

    Learners keep what they ask for as long as the env runners can share the rest.

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
    _check_gpus(config, cluster_gpus)
    evaluation = dict(config.evaluation_config or {})
    runner_cpus = float(config.num_cpus_per_env_runner)
    evaluation_cpus = float(evaluation.get("num_cpus_per_env_runner", runner_cpus))
    learner_cpus = _cpus_per_learner(config)
    runners, evaluators = config.num_env_runners, config.evaluation_num_env_runners or 0
    learners = config.num_learners
    aggregators = max(learners, 1) * config.num_aggregator_actors_per_learner  # a CPU each, fixed

    runner_demand = runners * runner_cpus + evaluators * evaluation_cpus
    if runner_demand + learners * learner_cpus + aggregators <= cluster_cpus:
        return config, []
    left = cluster_cpus - aggregators
    if left <= 0:
        raise UserError(
            f"learners.num_aggregator_actors_per_learner: {aggregators} aggregators take a CPU "
            f"each, there are {cluster_cpus:g}; use 0"
        )
    sharing, actors = [_counted(runners, "env runner")], runners
    if evaluators:
        sharing.append(_counted(evaluators, "evaluation runner"))
        actors += evaluators
    rest = left - learners * learner_cpus
    share_learners = rest <= 0 or not actors
    if share_learners:
        sharing.append(_counted(learners, "learner"))
        actors += learners
    else:
        left = rest
    share = _share(left, actors, num_nodes)

    changed = config.copy(copy_frozen=False)
    changed.env_runners(num_cpus_per_env_runner=min(runner_cpus, share))  # type: ignore[arg-type]
    if "num_cpus_per_env_runner" in evaluation:
        evaluation["num_cpus_per_env_runner"] = min(evaluation_cpus, share)
        changed.evaluation_config = evaluation
    if share_learners:
        changed.learners(num_cpus_per_learner=min(learner_cpus, share))
    names = " and ".join(name for name in sharing if not name.startswith("0 "))
    return changed, [f"{names} share {_counted(left, 'CPU')} ({share:g} CPU each)"]


def _share(cpus: float, actors: int, num_nodes: int) -> float:
    """CPUs for each, so that all fit even if every node but one is left with a remainder.

    sum over nodes of floor(cpus_i / share) > cpus / share - num_nodes >= actors - 1
    """
    exact = cpus / (actors + num_nodes - 1)
    step = 0.01 if exact >= 0.01 else _SMALLEST_SHARE
    # The small term keeps 0.29 / 0.01 = 28.999... at 29 steps.
    share = round(math.floor(exact / step + 1e-9) * step, 4)
    if share < _SMALLEST_SHARE:
        raise UserError(
            f"env_runners.num_env_runners: {actors} actors are too many for {cpus:g} CPUs; "
            f"use at most {int(cpus / _SMALLEST_SHARE)}"
        )
    return share


def _cpus_per_learner(config: AlgorithmConfig) -> float:
    """'auto' is a CPU for a learner without a GPU, as in RLlib's LearnerGroup."""
    if config.num_cpus_per_learner == "auto":
        return 1.0 if config.num_gpus_per_learner == 0 else 0.0
    return float(config.num_cpus_per_learner)


def _check_gpus(config: AlgorithmConfig, cluster_gpus: float) -> None:
    learners = max(config.num_learners, 1)  # with none, the driver itself is the learner
    runners = config.num_env_runners + (config.evaluation_num_env_runners or 0)
    learner_gpus = learners * config.num_gpus_per_learner
    runner_gpus = runners * config.num_gpus_per_env_runner
    if learner_gpus > cluster_gpus:
        use = f"use at most {cluster_gpus / learners:g}" if cluster_gpus else "use 0"
        raise _gpu_error("learners.num_gpus_per_learner", learner_gpus, cluster_gpus, use)
    if runner_gpus and runner_gpus + learner_gpus > cluster_gpus:
        left = cluster_gpus - learner_gpus
        raise _gpu_error("env_runners.num_gpus_per_env_runner", runner_gpus, left, "use 0")


def _gpu_error(key: str, asked: float, there: float, use: str) -> UserError:
    return UserError(f"{key}: asks for {_counted(asked, 'GPU')}, this machine has {there:g}; {use}")


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")
