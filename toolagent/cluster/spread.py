"""Env runners spread evenly over the nodes of a cluster.

By default Ray fills a node to one half before it begins the next, so a cluster that is not full has
its env runners on few nodes, and a lost node costs more of them than it should. RLlib has no option
for it (its `placement_strategy` is Tune's); Ray has, for each actor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.rllib.algorithms import algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override


class SpreadEnvRunnerGroup(EnvRunnerGroup):
    """RLlib's group of env runners, each placed where Ray has the fewest, restarts included."""

    @override(EnvRunnerGroup)
    def _setup(self, **kwargs: Any) -> None:
        self._remote_args["scheduling_strategy"] = "SPREAD"
        super()._setup(**kwargs)


@contextlib.contextmanager
def spread_env_runners() -> Iterator[None]:
    """Algorithms that are built in the block spread their env runners.

    Not for trials of Tune: those have places of their own reserved (a placement group).
    """
    before = algorithm.EnvRunnerGroup
    algorithm.EnvRunnerGroup = SpreadEnvRunnerGroup  # type: ignore[misc]
    try:
        yield
    finally:
        algorithm.EnvRunnerGroup = before  # type: ignore[misc]
