"""Programs that an agent was found right with, for another network to imitate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.tasks import Task

_AT_ONCE = 500  # problems that are played together
_MOST_WAYS = 16  # to write one plan, kept of each lesson
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits all over
_LEAST_ALIKE = 2  # problems that a way is tried on
_MOST_MOVES = 2  # of tools, from one way to another


class Lessons:
    """A ring of solved episodes whose plan was right on several problems of one structure.

    An episode is kept if the greedy agent solved its problem and others that the same plan solves
    (`Task.variants`), without the actions that did nothing. No program comes from anywhere
    else: what is right is what the environment rewards.

    Many plans can be written in several ways that are all right: `4 7 + 9 4 * *` is
    `4 7 + 9 * 4 *`. An agent writes one or the other, by no rule that holds for longer problems.
    So a lesson is all of them that are found by moving a tool to another place, and one more, as
    long as each is right on these problems too; whoever learns from it may choose. (Not
    where tools answer: what would have been answered was not played.)

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
        self.shares = np.array([*[earlier_share / max(1, len(earlier))] * len(earlier), 0.0])
        self.shares[-1] = 1.0 - self.shares.sum()
        self.store: EpisodeBatch | None = None
        self.ways = np.zeros((capacity, _MOST_WAYS, task.max_actions), np.int8)
        self.num_ways = np.zeros(capacity, np.int64)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def play(self, *networks: AgentNetwork) -> tuple[int, float]:
        """Adds what the first network is right with of some fresh problems; of the others, what
        the next one is right with, and so on.

        Returns:
            The env steps that were played, and the share of the problems that were kept.
        """
        task = self.task
        stage = self.rng.choice(self.stages, _AT_ONCE, p=self.shares)
        first = task.practice(self.rng, stage)
        problems = [first, *(task.variants(first, self.rng) for _ in range(self.variants - 1))]
        before, env_steps = self.added, 0
        for network in networks:
            if not len(problems[0]):
                break
            failed, more = self._play(network, problems)
            env_steps += more
            problems = [each.take(failed) for each in problems]
        return env_steps, (self.added - before) / _AT_ONCE

    def _play(self, network: AgentNetwork, problems: list[Any]) -> tuple[np.ndarray, int]:
        """The rows of the problems that nothing was kept of, and the env steps it took."""
        task = self.task
        played = [play(network, task, each) for each in problems]
        env_steps = sum(episodes.env_steps for episodes in played)
        if not task.response_length:
            for episodes, each in zip(played, problems, strict=True):
                env_steps += self._leave_out_idle(episodes, each)
        kept = np.ones(len(played[0]), bool)
        if task.response_length:
            kept = played[0].effective(task).sum(1) == played[0].lengths
        for episodes in played:
            kept &= episodes.solved & (episodes.lengths == played[0].lengths)
        rows = np.flatnonzero(kept)
        if len(rows):
            found = [episodes.take(rows) for episodes in played]
            env_steps += self._add(found, [each.take(rows) for each in problems])
        return np.flatnonzero(~kept), env_steps

    def _leave_out_idle(self, episodes: EpisodeBatch, problems: Any) -> int:
        """Leaves actions that did nothing out of the episodes, in place; what is not right without
        them counts as not solved. Returns the env steps that trying it took."""
        did = episodes.effective(self.task)
        order = np.argsort(~did, 1, kind="stable")
        happened = np.arange(did.shape[1]) < did.sum(1)[:, None]
        answer = self.task.vocabulary.answer_token
        actions = np.take_along_axis(episodes.actions, order, 1)
        rewards = np.take_along_axis(episodes.rewards, order, 1)
        episodes.actions = np.where(happened, actions, answer).astype(np.int8)
        episodes.rewards = np.where(happened, rewards, 0.0).astype(np.float32)
        episodes.lengths = happened.sum(1).astype(np.int8)
        rows = np.flatnonzero(episodes.solved)
        lengths = episodes.lengths[rows]
        right = self._solves(problems.take(rows), episodes.actions[rows], lengths)
        episodes.solved[rows] = right
        return int(lengths.sum())

    def _add(self, played: list[EpisodeBatch], problems: list[Any]) -> int:
        """Keeps the first of the played episodes; returns the env steps that finding other ways to
        write them took."""
        episodes = played[0]
        if self.store is None:
            self.store = episodes.take(np.zeros(self.capacity, np.int64))
        places = (self.added + np.arange(len(episodes))) % self.capacity
        self.store.put(places, episodes)
        self.ways[places, 0], self.num_ways[places] = episodes.actions, 1
        self.added += len(episodes)
        env_steps = 0
        if not self.task.response_length:
            lesson, programs, env_steps = self._other_ways(played, problems)
            for row, program in zip(lesson.tolist(), programs, strict=True):
                place = places[row]
                if self.num_ways[place] < _MOST_WAYS:
                    self.ways[place, self.num_ways[place]] = program
                    self.num_ways[place] += 1
        return env_steps

    def _other_ways(
        self, played: list[EpisodeBatch], problems: list[Any]
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """(W,) lessons, (W, T) programs that are as right, and the env steps it took."""
        lengths = played[0].lengths
        programs = [episodes.actions for episodes in played]
        # A way is tried on those of the problems whose programs have the same tools in the same
        # places, so that the same move makes the same plan of them.
        tools = np.isin(programs[0], self._tools())
        alike = [
            ((program == programs[0]) | ~tools & ~np.isin(program, self._tools())).all(1)
            for program in programs
        ]
        rows = np.flatnonzero(np.sum(alike, axis=0) >= _LEAST_ALIKE)
        programs = [program[rows] for program in programs]
        known = _keys(rows, programs[0])
        found: list[tuple[np.ndarray, np.ndarray]] = []
        env_steps = 0
        for _ in range(_MOST_MOVES):
            start, origin, to = self._moves(programs[0], lengths[rows])
            for number, each in enumerate(problems):
                changed = moved(programs[number][start], origin, to)
                if number == 0:  # most are not new, or not right
                    _, new = np.unique(_keys(rows[start], changed), return_index=True)
                    new = new[~np.isin(_keys(rows[start[new]], changed[new]), known)]
                    start, origin, to, changed = start[new], origin[new], to[new], changed[new]
                tried = np.flatnonzero(alike[number][rows[start]])
                row = rows[start[tried]]
                right = np.ones(len(start), bool)
                right[tried] = self._solves(each.take(row), changed[tried], lengths[row])
                env_steps += int(lengths[row].sum())
                start, origin, to = start[right], origin[right], to[right]
            programs = [moved(program[start], origin, to) for program in programs]
            rows = rows[start]
            known = np.concatenate([known, _keys(rows, programs[0])])
            found.append((rows, programs[0]))
        lesson, ways = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = self.rng.permutation(len(lesson))
        return lesson[order], ways[order], env_steps

    def _tools(self) -> list[int]:
        names = self.task.tools or self.task.vocabulary.actions
        return [self.task.vocabulary.token(name) for name in names]

    def _moves(
        self, programs: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(M,) rows, and (M,) places that a tool is moved from and to; answers stay at the end."""
        place = np.arange(programs.shape[1])
        movable = place < lengths[:, None] - 1  # (B, T)
        row, origin, to = np.nonzero(
            (np.isin(programs, self._tools()) & movable)[:, :, None]
            & movable[:, None, :]
            & (place != place[:, None])
        )
        return row, origin, to

    def _solves(self, problems: Any, programs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(B,) bool: the program is right, ends when it says so, and each action did something."""
        task = self.task
        registers = task.start(problems)
        solved = np.zeros(len(programs), bool)
        useful, live = np.ones(len(programs), bool), np.ones(len(programs), bool)
        for step in range(int(lengths.max(initial=0))):
            before = task.status(registers)
            transition = task.step(problems, registers, programs[:, step].astype(np.int64))
            registers = transition.registers
            useful &= ~live | transition.done | (task.status(registers) != before)
            solved |= live & transition.solved & (step + 1 == lengths)
            live &= ~transition.done
        return solved & useful

    def sample(self, count: int) -> tuple[EpisodeBatch, np.ndarray]:
        """Evenly drawn lessons, in all their ways: at least `count` episodes, and (B,) int64, which
        lesson each is of; those of one stand side by side."""
        assert self.store is not None
        drawn = self.rng.integers(0, len(self), count)
        lesson = np.repeat(np.arange(count), self.num_ways[drawn])
        starts = np.cumsum(self.num_ways[drawn]) - self.num_ways[drawn]
        way = np.arange(len(lesson)) - starts[lesson]
        episodes = self.store.take(drawn[lesson])
        episodes.actions = self.ways[drawn[lesson], way]
        return episodes, lesson

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "store": None if self.store is None else dict(self.store.columns()),
            "ways": self.ways.copy(),
            "num_ways": self.num_ways.copy(),
            "added": self.added,
            "stream": self.rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        store = state["store"]
        self.store = store and EpisodeBatch.restored(
            {name: np.array(column) for name, column in store.items()}
        )
        self.ways, self.num_ways = np.array(state["ways"]), np.array(state["num_ways"])
        self.added = state["added"]
        self.rng.bit_generator.state = state["stream"]


def _keys(rows: np.ndarray, programs: np.ndarray) -> np.ndarray:
    """(B,) uint64: equal for equal rows with equal programs; of two others, one pair in 10^19."""
    keys = rows.astype(np.uint64)
    for column in programs.T.astype(np.uint64):
        keys = keys * _BASE + column
        keys ^= keys >> np.uint64(29)
    return keys


def moved(programs: np.ndarray, origin: np.ndarray, to: np.ndarray) -> np.ndarray:
    """(B, T) programs with the token at place `origin` (B,) taken out and put in at `to` (B,)."""
    place = np.arange(programs.shape[1])
    first, last = np.minimum(origin, to)[:, None], np.maximum(origin, to)[:, None]
    shift = np.sign(to - origin)[:, None]
    source = place + shift * ((first <= place) & (place <= last))
    source = np.where(place == to[:, None], origin[:, None], source)
    return np.take_along_axis(programs, source, 1)
