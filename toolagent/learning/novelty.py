"""A bonus for bringing the machine into a status that is rare: exploration that fades out."""

from __future__ import annotations

from typing import Any

import numpy as np


class NoveltyBonus:
    """Intrinsic reward for the first visit of an episode to a machine status.

    With p the moving share of the stage's episodes that visit a status and s the moving share of
    its episodes that are solved,

        bonus = coefficient * (1 - s) * min(cap, -ln(p + 1e-3))

    so it is large for statuses seldom reached, and gone once the stage is learned. It is counted
    over the batches that all env runners send, so there is one set of statistics and nothing to
    merge. It goes into a column of its own: returns and accuracies never contain it.

    A status is which registers are filled and how far the machine has read (`Task.status`). The
    agent never observes it; it is counted by the trainer, as state counts are in Bellemare et al.
    2016, "Unifying count-based exploration and intrinsic motivation".

    Args:
        num_stages: of the task.
        num_statuses: of the task.
        coefficient: 0 switches the bonus off.
        cap: the largest surprise, in nats.
        rate: of the moving shares, per batch, 0..1.
    """

    def __init__(
        self, num_stages: int, num_statuses: int, coefficient: float, cap: float, rate: float
    ):
        self.coefficient, self.cap, self.rate = coefficient, cap, rate
        self.visited_share = np.zeros((num_stages, num_statuses))
        self.solved_share = np.zeros(num_stages)

    def rewards(
        self, stage: np.ndarray, status: np.ndarray, lengths: np.ndarray, solved: np.ndarray
    ) -> np.ndarray:
        """The bonus of a batch, by the statistics so far, which then take the batch in.

        Args:
            stage: (B,) integers.
            status: (B, T) integers, after each action.
            lengths: (B,) actions taken.
            solved: (B,) bool.

        Returns:
            (B, T) float32, 0 outside first visits.
        """
        visited, first = first_visits(status, lengths, self.visited_share.shape[1])
        surprise = np.minimum(self.cap, -np.log(self.visited_share + 1e-3))  # (S, statuses)
        worth = self.coefficient * (1 - self.solved_share)[:, None] * surprise
        bonus = np.where(first, worth[stage[:, None], status], 0.0)
        for played in np.unique(stage):
            rows = stage == played
            self.visited_share[played] += self.rate * (
                visited[rows].mean(0) - self.visited_share[played]
            )
            self.solved_share[played] += self.rate * (
                solved[rows].mean() - self.solved_share[played]
            )
        return bonus.astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"visited_share": self.visited_share, "solved_share": self.solved_share}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.visited_share = np.array(state["visited_share"])
        self.solved_share = np.array(state["solved_share"])


def first_visits(
    status: np.ndarray, lengths: np.ndarray, num_statuses: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which statuses each episode visits, and at which steps it does so for the first time.

    The status before the first action, 0, counts as known.

    Returns:
        visited (B, num_statuses) bool and first (B, T) bool.
    """
    rows = np.arange(len(status))
    visited = np.zeros((len(status), num_statuses), bool)
    visited[:, 0] = True
    first = np.zeros(status.shape, bool)
    for step in range(status.shape[1]):
        first[:, step] = ~visited[rows, status[:, step]] & (step < lengths)
        visited[rows[first[:, step]], status[first[:, step], step]] = True
    return visited, first
