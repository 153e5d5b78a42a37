"""What each actor asks of a node, how many of them the nodes have room for, and `auto`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toolagent.config.actors import Group, Offer, actors_of, counted
from toolagent.config.settings import AUTO
from toolagent.errors import UserError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

# How many env runners a learner can use (README, 'Scale on paper'): one plays 322,000 steps/s, a
# learner on a CPU learns 155,000; one on a GPU that learned 5 million could use 16. In a cluster a
# second one plays while the first one's episodes travel; on one machine it would take the
# learner's CPU.
_FOR_CPU_LEARNER, _FOR_CPU_LEARNER_IN_CLUSTER, _FOR_GPU_LEARNER = 1, 2, 16
_OWN_TO_RAY = ("CPU", "GPU", "memory", "object_store_memory", "bundle", "accelerator_type", "node")


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
    taken = sum(group.all_cpus for group in others)
    taken += 1.0 if driver.get("CPU", 0.0) >= 1 else 0.0
    room = room_for(runners.request, offers)
    if runners.cpus:
        cpus = sum(offer.get("CPU", 0.0) for offer in offers)
        room = min(room, int((cpus - taken) / runners.cpus))
    useful, why = _useful(config, others[1], joined)
    count = max(1, min(room, useful))
    reason = why if useful <= room else "one for each free CPU" if joined else "a CPU is free"
    if room < 1:
        reason = "no CPU is free; it shares"
    changed = config.copy(copy_frozen=False)
    changed.env_runners(num_env_runners=count)
    return changed, f"{AUTO}: {counted(count, runners.noun)} ({reason})"


def check_placement(config: AlgorithmConfig, offers: Sequence[Offer], driver: Offer) -> None:
    """Refuses actors that would wait for ever for a node that takes them.

    Args:
        config: as resolved for these nodes.
        offers: of all nodes.
        driver: the offer of the driver's node.

    Raises:
        UserError: no node has what one of them asks for, or not so many of them.
    """
    runners, _, learners, _ = actors_of(config)
    for section, group in (("env_runners", runners), ("learners", learners)):
        count, request = group.count, group.request
        noun = group.noun.replace(" ", "_")
        room = room_for(request, offers)
        if count <= room:
            continue
        there = {name for offer in offers for name, amount in offer.items() if amount}
        unknown = sorted(filter(_is_custom, request.keys() - there))
        if unknown:
            known = sorted(filter(_is_custom, there))
            declared = f"they have {', '.join(known)}" if known else "they declare none"
            raise UserError(
                f"{section}.custom_resources_per_{noun}: no node has '{unknown[0]}'; {declared}"
            )
        asked = ", ".join(f"{name} {amount:g}" for name, amount in request.items() if amount)
        raise UserError(
            f"{section}.num_{section}: {count} {section.replace('_', ' ')} ask for {asked} each; "
            f"the nodes have room for {room}"
        )
    if not learners.count and learners.gpus and not driver.get("GPU", 0.0):
        raise UserError(
            "learners.num_gpus_per_learner: without remote learners the driver learns, and its "
            "node has no GPU; add --num-learners 1"
        )


def check_no_custom_resources(config: AlgorithmConfig) -> None:
    """For one machine, where Ray is started without any.

    Raises:
        UserError: actors ask for some.
    """
    for section, noun in (("env_runners", "env_runner"), ("learners", "learner")):
        name = f"custom_resources_per_{noun}"
        for resource in getattr(config, name) or {}:
            raise UserError(
                f"{section}.{name}: this machine has no '{resource}'; only the nodes of a cluster "
                "(--address) can have custom resources"
            )


def room_for(request: Offer, offers: Sequence[Offer]) -> int:
    """How many actors with this request fit onto empty nodes with these offers."""
    wanted = {name: amount for name, amount in request.items() if amount > 0}
    if not wanted:
        return 1_000_000  # they ask for nothing
    return sum(
        min(int(offer.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items())
        for offer in offers
    )


def _useful(config: Any, learners: Group, joined: bool) -> tuple[int, str]:
    """The most env runners that can be kept busy, and what sets the limit."""
    if not hasattr(config, "max_staleness"):  # stock RLlib: the env runners are the limit
        return 1_000_000, ""
    count, on_gpu = max(1, learners.count), learners.gpus > 0
    in_cluster = _FOR_CPU_LEARNER_IN_CLUSTER if joined else _FOR_CPU_LEARNER
    each = _FOR_GPU_LEARNER if on_gpu else in_cluster
    fragments = math.ceil(config.episodes_per_update / config.num_envs_per_env_runner)
    busy = fragments * (config.max_staleness + 1)
    if busy < each * count:
        return busy, "training.episodes_per_update keeps no more busy"
    kind = "GPU" if on_gpu else "CPU"
    return each * count, f"{counted(count, f'{kind} learner')} can use no more"


def _is_custom(name: str) -> bool:
    return name.partition(":")[0] not in _OWN_TO_RAY
