"""Replay of solved episodes for self-imitation, one slot for each program."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.tasks import Task

_EMPTY = -1  # the key of a slot that holds no program
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits all over


class SuccessReplay:
    """A store of solved episodes of one stage, in slots: one a program (`program_keys`).

    A program that was found once among thousands is as present as one that is played all the
    time; what counts is how often it is right when it is played:

        weight = (successes / (attempts + 2))^2

    so a coincidence, right on one problem in ten, weighs little. Of each program the latest
    problems that it solved are kept.

    Source: Oh et al. 2018, "Self-imitation learning", with programs in place of transitions.

    Args:
        slots: programs kept; the one of least weight is replaced.
        examples: solved episodes kept of each.
        task: of the episodes.
        rng: draws what is replayed.
    """

    def __init__(self, slots: int, examples: int, task: Task, rng: np.random.Generator):
        self.examples, self.task, self.rng = examples, task, rng
        self.keys = np.full(slots, _EMPTY, np.int64)
        self.successes = np.zeros(slots)
        self.attempts = np.zeros(slots)
        self.kept = np.zeros(slots, np.int64)  # examples ever kept; a ring of `examples`
        self.store: EpisodeBatch | None = None  # slot s owns rows s*examples ...

    @property
    def weights(self) -> np.ndarray:
        """(slots,) how much each program is replayed; 0 for empty slots."""
        return (self.successes / (self.attempts + 2)) ** 2

    def add(self, batch: EpisodeBatch, rows: np.ndarray | None = None) -> None:
        """Counts the batch's attempts at known programs and takes in what it solved.

        Args:
            batch: episodes.
            rows: (n,) of those that are of the stage; None: all.

        Work is a few passes over (B,) columns, and Python only for each *program* newly solved
        or solved again, of which there are few.
        """
        if self.store is None:
            self.store = batch.take(np.zeros(len(self.keys) * self.examples, np.int64))
        rows = np.arange(len(batch)) if rows is None else rows
        solved = batch.solved[rows]
        unique, group = np.unique(self._programs(batch)[rows], return_inverse=True)
        attempts = np.bincount(group, minlength=len(unique))
        successes = np.bincount(group, weights=solved, minlength=len(unique))
        order = np.argsort(self.keys)
        place = np.minimum(np.searchsorted(self.keys[order], unique), len(order) - 1)
        slots = np.where(self.keys[order][place] == unique, order[place], _EMPTY)
        known = slots != _EMPTY
        self.attempts[slots[known]] += attempts[known]
        self.successes[slots[known]] += successes[known]
        # The latest solved row of each program that was solved at all.
        latest = np.full(len(unique), _EMPTY)
        latest[group[solved]] = rows[solved]
        written = []
        for index in np.flatnonzero(latest != _EMPTY):
            slot = int(slots[index])
            if slot == _EMPTY:
                slot = int(np.where(self.keys == _EMPTY, -1.0, self.weights).argmin())
                self.keys[slot] = unique[index]
                self.successes[slot], self.attempts[slot] = successes[index], attempts[index]
                self.kept[slot] = 0
                self._replace(slot, latest[index])
                slots[slots == slot] = _EMPTY  # the replaced program is unknown from now on
            written.append(slot * self.examples + self.kept[slot] % self.examples)
            self.kept[slot] += 1
        # Where a slot was replaced twice, the last one counts.
        self.store.put(np.array(written, np.int64), batch.take(latest[latest != _EMPTY]))

    def _programs(self, batch: EpisodeBatch) -> np.ndarray:
        """(B,) int64 keys of the programs."""
        return program_keys(batch, self.task)

    def _replace(self, slot: int, row: int) -> None:
        """Called when the program of the batch's episode `row` takes a slot."""

    def sample(self, count: int) -> EpisodeBatch | None:
        """`count` solved episodes, drawn by weight; None if none is worth it."""
        slots = np.flatnonzero((self.keys != _EMPTY) & (self.weights > 0))
        if self.store is None or not len(slots) or not count:
            return None
        weights = self.weights[slots]
        drawn = self.rng.choice(slots, size=count, p=weights / weights.sum())
        filled = np.minimum(self.kept[drawn], self.examples)
        example = (self.rng.random(count) * filled).astype(np.int64)
        return self.store.take(drawn * self.examples + example)

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in ("keys", "successes", "attempts", "kept")} | {
            "store": None if self.store is None else dict(self.store.columns()),
            "stream": self.rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        for name in ("keys", "successes", "attempts", "kept"):
            setattr(self, name, np.array(state[name]))
        store = state["store"]
        self.store = store and EpisodeBatch.restored(
            {name: np.array(column) for name, column in store.items()}
        )
        self.rng.bit_generator.state = state["stream"]


def program_keys(batch: EpisodeBatch, task: Task) -> np.ndarray:
    """(B,) int64: equal for episodes whose actions *that did something* are the same, in order.

    Programs that differ only in no-op tokens count as one: actions that leave the machine's status
    as it was, answers excepted. Otherwise a lucky answer would count as thousands of programs, each
    tried once and right once.

    A key is the upper 63 bits of a polynomial in those actions, modulo 2^64: of two different
    programs one in about 10^18 is taken for the other.
    """
    did = batch.effective(task)
    # The n-th effective action is the n-th coefficient.
    power = np.maximum(np.cumsum(did, axis=1) - 1, 0)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(batch.actions.shape[1], _BASE), dtype=np.uint64)
        terms = np.where(did, batch.actions + 1, 0).astype(np.uint64) * powers[power]
        return (terms.sum(1, dtype=np.uint64) >> np.uint64(1)).astype(np.int64)
