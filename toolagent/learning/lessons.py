"""Programs that an agent was found right with, for another network to imitate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.tasks import Task

_AT_ONCE = 1000  # problems that are played together


class Lessons:
    """A ring of solved episodes whose plan was right on several problems of one structure.

    An episode is kept if the greedy agent solved its problem and others that the same plan solves
    (`Task.variants`), and if each of its actions did something. No program comes from anywhere
    else: what is right is what the environment rewards.

    Args:
        task: of the episodes.
        stages: what problems are drawn from, the hardest last.
        earlier_share: how many are of another stage than the last, all alike.
        variants: problems that a plan has to solve, the episode's own among them.
        capacity: episodes; the oldest are overwritten.
        rng: draws problems, and what is learned from.
    """

    def __init__(
        self,
        task: Task,
        stages: Sequence[int],
        earlier_share: float,
        variants: int,
        capacity: int,
        rng: np.random.Generator,
    ):
        self.task, self.variants, self.capacity, self.rng = task, variants, capacity, rng
        *earlier, last = stages
        self.stages = np.array([*earlier, last], np.int8)
        self.shares = np.array([*[earlier_share / len(earlier)] * len(earlier), 0.0])
        self.shares[-1] = 1.0 - self.shares.sum()
        self.store: EpisodeBatch | None = None
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def play(self, network: AgentNetwork) -> tuple[int, float]:
        """Adds what the network is right with of some fresh problems.

        Returns:
            The env steps that were played, and the share of the problems that were kept.
        """
        stage = self.rng.choice(self.stages, _AT_ONCE, p=self.shares)
        problems = self.task.practice(self.rng, stage)
        episodes = play(network, self.task, problems)
        kept = episodes.solved & (episodes.effective(self.task).sum(1) == episodes.lengths)
        env_steps = episodes.env_steps
        for _ in range(self.variants - 1):
            others = play(network, self.task, self.task.variants(problems, self.rng))
            kept &= others.solved
            env_steps += others.env_steps
        self._add(episodes.take(kept))
        return env_steps, float(kept.mean())

    def _add(self, episodes: EpisodeBatch) -> None:
        if not len(episodes):
            return
        if self.store is None:
            self.store = episodes.take(np.zeros(self.capacity, np.int64))
        places = (self.added + np.arange(len(episodes))) % self.capacity
        self.store.put(places, episodes)
        self.added += len(episodes)

    def sample(self, count: int) -> EpisodeBatch:
        """`count` of them, evenly drawn."""
        assert self.store is not None
        return self.store.take(self.rng.integers(0, len(self), count))

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "store": None if self.store is None else dict(self.store.columns()),
            "added": self.added,
            "stream": self.rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        store = state["store"]
        self.store = store and EpisodeBatch.restored(
            {name: np.array(column) for name, column in store.items()}
        )
        self.added = state["added"]
        self.rng.bit_generator.state = state["stream"]
