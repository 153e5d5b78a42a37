"""The user's RLlib callbacks: called beside the run's own, or refused where nobody calls them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolagent.config.source import Source

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_OF_SINGLE_EPISODES = (
    "on_episode_created",
    "on_episode_start",
    "on_episode_step",
    "on_episode_end",
)


def add_callbacks(config: AlgorithmConfig, classes: list[Any]) -> AlgorithmConfig:
    """Puts callbacks after the curriculum's and before those that the user's config names.

    RLlib's `config.callbacks(...)` would replace them all.

    Args:
        config: changed.
        classes: subclasses of `RLlibCallback`, or partials of them.

    Returns:
        The config.
    """
    from ray.rllib.callbacks.callbacks import RLlibCallback
    from ray.rllib.utils import force_list

    from toolagent.curriculum.callback import CurriculumCallback

    # RLlib's default is the class that does nothing.
    given = [made for made in force_list(config.callbacks_class) if made is not RLlibCallback]
    first = 1 if given and getattr(given[0], "func", None) is CurriculumCallback else 0
    return config.callbacks(callbacks_class=[*given[:first], *classes, *given[first:]])


def check_callbacks(config: AlgorithmConfig, given: Mapping[str, Any], source: Source) -> None:
    """Refuses callbacks for single episodes where episodes are played in batches.

    Args:
        config: with the callbacks in place.
        given: the config's section 'callbacks'.
        source: of the section.

    Raises:
        UserError: one would never be called.
    """
    from ray.rllib.callbacks.callbacks import RLlibCallback
    from ray.rllib.utils import force_list

    from toolagent.rollouts.env_runner import BatchedEnvRunner

    if not issubclass(config.env_runner_cls or object, BatchedEnvRunner):
        return
    for name in _OF_SINGLE_EPISODES:
        option = name if given.get(name) is not None else None
        for made in force_list(config.callbacks_class):
            made = made.func if isinstance(made, functools.partial) else made
            if getattr(made, name) is not getattr(RLlibCallback, name):
                option = "callbacks_class"
        if option is not None:
            raise source.error(
                ("callbacks", option),
                f"{name} would never be called: episodes are played in batches, for which there "
                "is on_sample_end",
            )
