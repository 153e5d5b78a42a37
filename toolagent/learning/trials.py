"""A table, learned from experience, of which tokens do something in which machine status."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.explorers import ExplorerTables
from toolagent.tasks import Task


class TrialTable:
    """Counts, for each machine status and token, how often it was tried and did something.

    What does something is `EpisodeBatch.effective`: a token that is not refused, changes the
    status, or ends the episode. Explorers draw from the tokens that did something in more than
    `least_share` of the trials, and from those not yet tried `min_tries` times; the others are left
    alone. On a machine with few statuses this makes long programs likely to be found by chance,
    with no model of what the tokens mean.

    Args:
        task: S statuses, A actions.
        min_tries: how often a token is tried in a status before it counts as doing nothing.
        least_share: 0 for tokens that ever did something.
    """

    def __init__(self, task: Task, min_tries: int, least_share: float = 0.0):
        self.task, self.min_tries, self.least_share = task, min_tries, least_share
        actions = task.vocabulary.num_actions
        self.tries = np.zeros((task.num_statuses, actions), np.int64)
        self.effects = np.zeros((task.num_statuses, actions), np.int64)
        self.seen = np.zeros(actions, bool)

    def add(self, batch: EpisodeBatch) -> None:
        """Counts every action of the batch, whoever played it, and notes what was read."""
        before = np.zeros(batch.status.shape, np.int64)  # 0 before the first action
        before[:, 1:] = batch.status[:, :-1]
        happened = np.arange(batch.actions.shape[1]) < batch.lengths[:, None]
        actions = len(self.seen)
        pairs = before * actions + batch.actions
        did = batch.effective(self.task)
        size = self.tries.size
        self.tries += np.bincount(pairs[happened], minlength=size).reshape(self.tries.shape)
        self.effects += np.bincount(pairs[did], minlength=size).reshape(self.tries.shape)
        for read in (batch.context, batch.response):
            counts = np.bincount(read.ravel(), minlength=actions)
            self.seen |= counts[:actions] > 0

    def for_explorers(self) -> ExplorerTables:
        """What explorers need of it."""
        worth = (self.effects > self.least_share * self.tries) | (self.tries < self.min_tries)
        worth |= ~worth.any(1, keepdims=True)  # a status where nothing does anything: anything
        log_weight = -np.log(worth.sum(1, keepdims=True)).astype(np.float32)  # one, (statuses, 1)
        return ExplorerTables(np.where(worth, log_weight, -np.float32(np.inf)), self.seen.copy())

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"tries": self.tries, "effects": self.effects, "seen": self.seen}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.tries, self.effects = np.array(state["tries"]), np.array(state["effects"])
        # Checkpoints before `seen` are of tasks whose explorers don't copy.
        self.seen = np.array(state.get("seen", self.seen))
