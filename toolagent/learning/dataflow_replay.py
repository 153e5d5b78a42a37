"""Replay of solved episodes by what they computed, of what the policy can't do yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.learning.success_replay import SuccessReplay
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.tasks import Task

_MARGIN = 0.02
_RATE = 0.1  # of the policy's moving success on a kind, per update


class DataflowReplay(SuccessReplay):
    """A `SuccessReplay` for tasks in which the problems' kinds need different programs.

    Programs are told apart by `Task.kinds` and `Task.dataflow`: of which kind the problem is, and
    which answer or which place of the problem each argument was. What is kept is the program
    without the actions that it did not need. A program is replayed as far as it is right more
    often than the policy is, on problems of its kind:

        weight = max(0, successes / (attempts + 4) - the policy's success on the kind - 0.02)^2

    so that what is solved is not replayed any more, and a coincidence weighs little. Of a kind only
    the best program is replayed: of several that are right, such as `a+b` and `b+a`, imitating all
    would teach none.

    Source: Oh et al. 2018, "Self-imitation learning": only what went better than expected.
    """

    def __init__(self, slots: int, examples: int, task: Task, rng: np.random.Generator):
        super().__init__(slots, examples, task, rng)
        self.kinds = np.zeros(slots, np.int64)
        self.solved: dict[int, float] = {}  # by kind: the policy's moving success

    @property
    def weights(self) -> np.ndarray:
        """(slots,) how much each program is replayed; 0 for empty slots."""
        policy = np.array([self.solved.get(kind, 0.0) for kind in self.kinds.tolist()])
        score = self.successes / (self.attempts + 4)
        order = np.lexsort((score, self.kinds))
        best = np.append(self.kinds[order][1:] != self.kinds[order][:-1], True)
        surplus = np.zeros(len(score))
        surplus[order[best]] = np.maximum(score - policy - _MARGIN, 0)[order[best]]
        return surplus**2

    def add(self, batch: EpisodeBatch, rows: np.ndarray | None = None) -> None:
        """Counts, keeps (see `SuccessReplay`), and notes what the policy solves by itself."""
        batch = batch if rows is None else batch.take(rows)
        kinds = self.task.kinds(batch.context)  # (B,)
        distinct, group = np.unique(kinds, return_inverse=True)
        policy = ~batch.explored
        played = np.bincount(group[policy], minlength=len(distinct))
        solved = np.bincount(group[policy], weights=batch.solved[policy], minlength=len(distinct))
        for kind, count, right in zip(distinct.tolist(), played, solved, strict=True):
            if count:
                before = self.solved.get(kind, 0.0)
                self.solved[kind] = before + _RATE * (right / count - before)
        keys, needed = self.task.dataflow(
            batch.context, batch.actions, batch.lengths, batch.response
        )
        known = np.flatnonzero(needed.any(1))  # of the others it is not known what they computed
        self._kinds, self._keys = kinds[known], keys[known]
        if len(known):
            kept = _without(batch.take(known), needed[known], self.task)
            super().add(kept)

    def _programs(self, batch: EpisodeBatch) -> np.ndarray:
        with np.errstate(over="ignore"):
            mixed = self._keys.astype(np.uint64) * _ODD + self._kinds.astype(np.uint64)
            mixed = (mixed * _ODD) >> np.uint64(1)
        return mixed.astype(np.int64)

    def _replace(self, slot: int, row: int) -> None:
        self.kinds[slot] = self._kinds[row]

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return super().get_state() | {"kinds": self.kinds, "solved": self.solved}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        super().set_state(state)
        self.kinds, self.solved = np.array(state["kinds"]), dict(state["solved"])


_ODD = np.uint64(0x9E3779B97F4A7C15)


def _without(batch: EpisodeBatch, needed: np.ndarray, task: Task) -> EpisodeBatch:
    """The episodes without the actions that are not needed; what follows moves up."""
    happened = np.arange(needed.shape[1]) < batch.lengths[:, None]
    kept = needed & happened
    order = np.argsort(~kept, axis=1, kind="stable")  # (B, T)
    lengths = kept.sum(1).astype(batch.lengths.dtype)
    over = np.arange(needed.shape[1]) >= lengths[:, None]
    columns = dict(batch.columns())
    for name, filler in (
        ("actions", task.vocabulary.answer_token),
        ("rewards", 0),
        ("log_probabilities", 0),
        ("status", 0),
    ):
        moved = np.take_along_axis(columns[name], order, 1)
        moved[over] = filler
        columns[name] = moved
    response = np.take_along_axis(batch.response, order[:, :, None], 1)
    response[over] = task.vocabulary.pad_token
    return type(batch)(**columns | {"lengths": lengths, "response": response})
