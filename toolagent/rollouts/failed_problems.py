"""Replay of problems that the policy mostly failed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

CAPACITY = 4096  # problems; the oldest are overwritten
ENOUGH = 256  # with fewer, the same problems would be drawn again and again
FAILED_BELOW = 0.5  # of its episodes solved, or just as many: the problem counts as failed
_RATE = 0.05  # of the moving share of solved episodes, per call


class FailedProblems:
    """A ring of the current stage's problems that a runner's policy mostly failed.

    Late in a stage fresh problems teach little: nearly every episode of every group is right.
    Early in a stage nearly every problem is failed, and the few that are solved teach more. The
    share drawn from here therefore grows with the share of fresh problems' episodes that are
    solved.
    """

    def __init__(self) -> None:
        self._stage: int | None = None
        self._ring: Any = None  # the task's Problems, CAPACITY rows
        self._added = 0
        self._solved = 0.0  # moving share, of fresh problems of the stage

    def __len__(self) -> int:
        return min(self._added, CAPACITY)

    def add(self, problems: Any, solved: np.ndarray, fresh: np.ndarray, stage: int) -> None:
        """Keeps the failed ones.

        Args:
            problems: (P,) that were played.
            solved: (P,) share of each one's episodes that solved it.
            fresh: (P,) bool: not from here.
            stage: the current one; others are not kept, and a new one empties the ring.
        """
        self._turn_to(stage)
        measured = solved[fresh & (problems.stage == stage)]
        if len(measured):
            self._solved += _RATE * (float(measured.mean()) - self._solved)
        failed = np.flatnonzero((problems.stage == stage) & (solved <= FAILED_BELOW))
        if not len(failed):
            return
        if self._ring is None:
            self._ring = problems.take(np.zeros(CAPACITY, np.int64))
        places = (self._added + np.arange(len(failed))) % CAPACITY
        self._ring.put(places, problems.take(failed))
        self._added += len(failed)

    def mix_in(
        self, problems: Any, among: int, stage: int, share: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Replaces, in place, a share of the current stage's problems by failed ones.

        Args:
            problems: (P,) fresh ones.
            among: only the first so many are touched.
            stage: the current one.
            share: the chance of each to be replaced, once all fresh ones are solved.
            rng: the stream that decides.

        Returns:
            (`among`,) bool: the problems that are still fresh.
        """
        self._turn_to(stage)
        if len(self) < ENOUGH:
            return np.ones(among, bool)
        chosen = (problems.stage[:among] == stage) & (rng.random(among) < share * self._solved)
        rows = np.flatnonzero(chosen)
        problems.put(rows, self._ring.take(rng.integers(0, len(self), len(rows))))
        return ~chosen

    def sample(self, count: int, stage: int, rng: np.random.Generator) -> Any | None:
        """`count` failed problems, evenly drawn; None if there are too few of them."""
        self._turn_to(stage)
        if len(self) < ENOUGH:
            return None
        return self._ring.take(rng.integers(0, len(self), count))

    def _turn_to(self, stage: int) -> None:
        if stage != self._stage:
            self._stage, self._ring, self._added, self._solved = stage, None, 0, 0.0

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "stage": self._stage,
            "added": self._added,
            "solved": self._solved,
            "ring": copy.deepcopy(self._ring),  # it goes on changing
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._stage, self._added = state["stage"], state["added"]
        self._ring, self._solved = copy.deepcopy(state["ring"]), state["solved"]
