"""Replay of explorers' episodes whose plan also solved other problems."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.rollouts.episode_batch import EpisodeBatch

CAPACITY = 256  # episodes; the oldest are overwritten
PEERS_AS_GOOD = 0.7  # the others' mean return, as a share of an episode's own


class VerifiedReplay:
    """A ring of solved episodes whose group, the same plan on other numbers, did as well.

    Most right answers of explorers are coincidences, and imitating those teaches wrong plans: with
    them in the store the policy learned more slowly than without a store. A plan that solves
    several problems of one structure is rarely a coincidence.

    Source: Oh et al. 2018, "Self-imitation learning", for learning from one's own successes.

    Args:
        rng: draws what is replayed.
        gamma: the discount of `baseline`.
    """

    def __init__(self, rng: np.random.Generator, gamma: float = 1.0):
        self.rng, self.gamma = rng, gamma
        self.store: EpisodeBatch | None = None
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, CAPACITY)

    def add(self, batch: EpisodeBatch, rows: np.ndarray | None = None) -> None:
        """Keeps the explorers' verified successes among the batch's episodes `rows`, (n,), or among
        all."""
        as_good = batch.baseline >= PEERS_AS_GOOD * batch.discounted_returns(self.gamma)
        verified = batch.explored & batch.solved & as_good
        rows = np.flatnonzero(verified) if rows is None else rows[verified[rows]]
        if not len(rows):
            return
        if self.store is None:
            self.store = batch.take(np.zeros(CAPACITY, np.int64))
        places = (self.added + np.arange(len(rows))) % CAPACITY
        self.store.put(places, batch.take(rows))
        self.added += len(rows)

    def sample(self, count: int) -> EpisodeBatch | None:
        """`count` of them, evenly drawn; None if there are none."""
        if self.store is None or not count:
            return None
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
