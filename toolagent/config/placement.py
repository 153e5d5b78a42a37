"""What each actor asks of a node, and fitting the actors of a run onto the nodes there are.

Outside Tune nothing is reserved as a whole: every actor asks Ray for its own share, and one that
cannot get it waits for ever. The driver (with the local learner) is no actor and asks for nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from toolagent.config.settings import AUTO
from toolagent.errors import UserError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

Offer = Mapping[str, float]  # of a node: {"CPU": 8.0, "GPU": 1.0, "spot": 8.0}

# How many env runners a learner can use (README, 'Scale on paper'): one plays 322,000 steps/s, a
# learner on a CPU learns 155,000; one on a GPU that learned 5 million could use 16. In a cluster a
# second one plays while the first one's episodes travel; on one machine it would take the
# learner's CPU.
_FOR_CPU_LEARNER, _FOR_CPU_LEARNER_IN_CLUSTER, _FOR_GPU_LEARNER = 1, 2, 16
_OWN_TO_RAY = ("CPU", "GPU", "memory", "object_store_memory", "bundle", "accelerator_type", "node")
_SMALLEST_SHARE = 0.0001  # Ray's unit of a resource
_UNLIMITED = 1_000_000


@dataclass(frozen=True)
class Group:
    """Actors of one kind."""

    noun: str
    count: int
    request: Offer  # of each

    @property
    def cpus(self) -> float:
        """Of all together."""
        return self.count * self.request["CPU"]

    def __str__(self) -> str:
        return _counted(self.count, self.noun)


class Actors(NamedTuple):
    """All actors of a config."""

    runners: Group
    evaluators: Group
    learners: Group
    aggregators: Group


def actors_of(config: AlgorithmConfig) -> Actors:
    """The actors that a config asks for."""
    evaluation = config.evaluation_config or {}
    custom: Any = config.custom_resources_per_env_runner
    runner = {
        "CPU": config.num_cpus_per_env_runner or 0,
        "GPU": config.num_gpus_per_env_runner or 0,
        **(custom or {}),
    }
    own = {
        "CPU": evaluation.get("num_cpus_per_env_runner", runner["CPU"]),
        "GPU": evaluation.get("num_gpus_per_env_runner", runner["GPU"]),
    }
    learners = int(config.num_learners or 0)
    cpus: Any = config.num_cpus_per_learner
    learner = {
        # 'auto' as in RLlib's LearnerGroup.
        "CPU": (0 if config.num_gpus_per_learner else 1) if cpus == "auto" else cpus or 0,
        "GPU": config.num_gpus_per_learner or 0,
        **(config.custom_resources_per_learner or {}),
    }
    # They take a whole CPU each, whatever the config says.
    aggregators = max(learners, 1) * (config.num_aggregator_actors_per_learner or 0)
    return Actors(
        Group("env runner", int(config.num_env_runners or 0), runner),
        Group("evaluation runner", int(config.evaluation_num_env_runners or 0), runner | own),
        Group("learner", learners, learner),
        Group("aggregator", aggregators, {"CPU": 1.0, "GPU": 0.0}),
    )


def with_auto_runners(
    config: AlgorithmConfig, offers: Sequence[Offer], driver: Offer, joined: bool
) -> tuple[AlgorithmConfig, str]:
    """As many env runners as there are CPUs for and the learners can use, and at least one.

    Args:
        config: is not changed.
        offers: of all nodes.
        driver: the offer of the driver's node; a CPU of it, if it has one, is the driver's.
        joined: a cluster, not this machine alone.

    Returns:
        The config with the number, and a line that says why it is that many.
    """
    runners, *others = actors_of(config)
    taken = sum(group.cpus for group in others)
    taken += 1.0 if driver.get("CPU", 0.0) >= 1 else 0.0
    room = room_for(runners.request, offers)
    if runners.request["CPU"]:
        cpus = sum(offer.get("CPU", 0.0) for offer in offers)
        room = min(room, int((cpus - taken) / runners.request["CPU"]))
    useful, why = _useful(config, others[1], joined)
    count = max(1, min(room, useful))
    reason = why if useful <= room else "one for each free CPU" if joined else "a CPU is free"
    if room < 1:
        reason = "no CPU is free; it shares"
    changed = config.copy(copy_frozen=False)
    changed.env_runners(num_env_runners=count)
    return changed, f"{AUTO}: {_counted(count, runners.noun)} ({reason})"


def share_cpus(
    config: AlgorithmConfig, cpus: float, num_nodes: int = 1
) -> tuple[AlgorithmConfig, list[str]]:
    """Makes the actors share the CPUs where they ask for more than there are.

    Learners keep what they ask for as long as that leaves something for the runners to share.

    Args:
        config: is not changed.
        cpus: of all nodes together.
        num_nodes: over how many nodes; an actor cannot use the remainders of two.

    Returns:
        The config, changed where necessary, and what was changed: one line a change.

    Raises:
        UserError: the actors are too many to share.
    """
    runners, evaluators, learners, aggregators = actors_of(config)
    left = cpus - aggregators.cpus
    if runners.cpus + evaluators.cpus + learners.cpus <= left:
        return config, []
    if left <= 0:
        raise UserError(
            f"learners.num_aggregator_actors_per_learner: {aggregators} with a CPU each, there are "
            f"{cpus:g}; use 0"
        )
    sharing = [group for group in (runners, evaluators) if group.cpus]
    if sharing and learners.cpus < left:
        left -= learners.cpus
    else:
        sharing.append(learners)
    share = _share(left, sum(group.count for group in sharing), num_nodes)
    changed = config.copy(copy_frozen=False)
    # RLlib's hint says int; Ray takes fractions.
    own: Any = min(runners.request["CPU"], share)
    changed.env_runners(num_cpus_per_env_runner=own)
    if "num_cpus_per_env_runner" in (config.evaluation_config or {}):
        own = min(evaluators.request["CPU"], share)
        changed.evaluation(evaluation_config={"num_cpus_per_env_runner": own})
    if learners in sharing:
        changed.learners(num_cpus_per_learner=min(learners.request["CPU"], share))
    names = " and ".join(map(str, sharing))
    return changed, [f"{names} share {_counted(left, 'CPU')} ({share:g} CPU each)"]


def check_placement(config: AlgorithmConfig, offers: Sequence[Offer], driver: Offer) -> None:
    """Refuses actors that would wait for ever for a node that takes them.

    Args:
        config: with CPUs that are shared already.
        offers: of all nodes.
        driver: the offer of the driver's node.

    Raises:
        UserError: no node has what one of them asks for, or not so many of them.
    """
    runners, evaluators, learners, _ = actors_of(config)
    free: Counter[str] = Counter()
    for offer in offers:
        free.update(offer)  # type: ignore[arg-type] (amounts are fractions)
    # Without remote learners, the driver learns.
    learning = replace(learners, count=max(1, learners.count))
    for groups, section, noun in (
        ([learning], "learners", "learner"),
        ([runners, evaluators], "env_runners", "env_runner"),
    ):
        for name in sorted(groups[0].request.keys() - {"CPU"}):
            asked = sum(group.count * group.request[name] for group in groups)
            if asked > free[name]:
                raise UserError(_too_much(section, noun, name, asked, free))
            free[name] -= asked  # type: ignore[assignment]
    for section, group in (("env_runners", runners), ("learners", learners)):
        room = room_for(group.request, offers)
        if group.count > room:
            asks = ", ".join(f"{name} {n:g}" for name, n in group.request.items() if n)
            raise UserError(
                f"{section}.num_{section}: {group} ask for {asks} each; the nodes have room for "
                f"{room}"
            )
    if not learners.count and learners.request["GPU"] and not driver.get("GPU", 0.0):
        raise UserError(
            "learners.num_gpus_per_learner: without remote learners the driver learns, and its "
            "node has no GPU; add --num-learners 1"
        )


def room_for(request: Offer, offers: Sequence[Offer]) -> int:
    """How many actors with this request fit onto empty nodes with these offers."""
    wanted = {name: amount for name, amount in request.items() if amount > 0}
    if not wanted:
        return _UNLIMITED  # they ask for nothing
    return sum(
        min(
            int(min(offer.get(name, 0.0) / amount + 1e-9, _UNLIMITED))
            for name, amount in wanted.items()
        )
        for offer in offers
    )


def _too_much(section: str, noun: str, name: str, asked: float, free: Mapping[str, float]) -> str:
    if name == "GPU":
        return (
            f"{section}.num_gpus_per_{noun}: asks for {_counted(asked, 'GPU')} in all, there are "
            f"{free[name]:g} free"
        )
    known = sorted(known for known in free if known.partition(":")[0] not in _OWN_TO_RAY)
    return (
        f"{section}.custom_resources_per_{noun}: asks for {asked:g} of '{name}' in all, the nodes "
        f"have {free[name]:g} free; they declare {', '.join(known) or 'none'} (only those of a "
        "cluster, --address, can)"
    )


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


def _useful(config: Any, learners: Group, joined: bool) -> tuple[int, str]:
    """The most env runners that can be kept busy, and what sets the limit."""
    if not hasattr(config, "max_staleness"):  # stock RLlib: the env runners are the limit
        return _UNLIMITED, ""
    count, on_gpu = max(1, learners.count), learners.request["GPU"] > 0
    in_cluster = _FOR_CPU_LEARNER_IN_CLUSTER if joined else _FOR_CPU_LEARNER
    each = _FOR_GPU_LEARNER if on_gpu else in_cluster
    fragments = math.ceil(config.episodes_per_update / config.num_envs_per_env_runner)
    busy = fragments * (config.max_staleness + 1)
    if busy < each * count:
        return busy, "training.episodes_per_update keeps no more busy"
    kind = "GPU" if on_gpu else "CPU"
    return each * count, f"{_counted(count, f'{kind} learner')} can use no more"


def _counted(number: float, noun: str) -> str:
    """'1 learner', '0.5 CPUs'."""
    return f"{number:g} {noun}" + ("" if number == 1 else "s")
