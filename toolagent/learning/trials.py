"""A table, learned from experience, of which tokens have an effect in which machine status."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.vocabulary import Vocabulary


class TrialTable:
    """Counts, for each machine status and token, how often it was tried and did something.

    A token *does something* in a status if it changes the status or ends the episode. Explorers
    draw evenly from the tokens that did something at least once, and from those not yet tried
    `min_tries` times; what was tried and did nothing is left alone. On a machine with few
    statuses this makes long programs likely to be found by chance, with no model of what the
    tokens mean.

    Args:
        num_statuses: of the task.
        vocabulary: of the task; A actions.
        min_tries: how often a token is tried in a status before it counts as doing nothing.
    """

    def __init__(self, num_statuses: int, vocabulary: Vocabulary, min_tries: int):
        self.vocabulary, self.min_tries = vocabulary, min_tries
        self.tries = np.zeros((num_statuses, vocabulary.num_actions), np.int64)
        self.effects = np.zeros((num_statuses, vocabulary.num_actions), np.int64)

    def add(self, batch: EpisodeBatch) -> None:
        """Counts every action of the batch, whoever played it."""
        before = np.zeros(batch.status.shape, np.int64)  # 0 before the first action
        before[:, 1:] = batch.status[:, :-1]
        happened = np.arange(batch.actions.shape[1]) < batch.lengths[:, None]
        pairs = before * self.vocabulary.num_actions + batch.actions
        did = batch.effective(self.vocabulary.answer_token)
        size = self.tries.size
        self.tries += np.bincount(pairs[happened], minlength=size).reshape(self.tries.shape)
        self.effects += np.bincount(pairs[did], minlength=size).reshape(self.tries.shape)

    def log_weights(self) -> np.ndarray:
        """(statuses, A) float32 log-probabilities; -inf for what is left alone."""
        worth = (self.effects > 0) | (self.tries < self.min_tries)
        worth |= ~worth.any(1, keepdims=True)  # a status where nothing does anything: anything
        with np.errstate(divide="ignore"):
            return np.log(worth / worth.sum(1, keepdims=True)).astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"tries": self.tries, "effects": self.effects}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.tries, self.effects = np.array(state["tries"]), np.array(state["effects"])
