"""Programs that an agent was found right with, for another network to imitate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import GivenTokens, play
from toolagent.tasks import Task
from toolagent.tasks.columns import Columns

_AT_ONCE = 500  # problems that are played together
_MOST_EDITS = 500_000  # of programs, tried at once; with five operands there are 200,000
_MOST_WAYS = 16  # to write one plan, kept of each lesson
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits all over


class Lessons:
    """A ring of solved episodes whose plan was right on several problems of one structure.

    A lesson is an episode of the greedy agent whose plan is right on its problem and on others that
    the same plan solves (`Task.variants`), without the actions that did nothing. No program comes
    from anywhere else: what is right is what the environment rewards.

    Many plans can be written in several ways that are all right: `4 7 + 9 4 * *` is
    `4 7 + 9 * 4 *`. An agent writes one or the other, by no rule that holds for longer problems.
    So a lesson is all of them that are found by moving a tool to another place, where one may be
    replaced as well, and moving one more, as long as each is right on these problems too; whoever
    learns from it may choose. A program that is wrong becomes a lesson where one that is right is
    found in this way: what an agent always fails at would be left out otherwise. (Where tools
    answer, nothing is moved: what would have been answered was not played.)

    A lesson's context is kept as it was asked and rewritten (`Task.rewritten`), if the same program
    is right there.

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
        self.rewritten = np.zeros((capacity, task.context_length), np.int8)  # contexts
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
        played = [play(network, self.task, each) for each in problems]
        kept, tried = self._keep(network, played, problems)
        env_steps = sum(episodes.env_steps for episodes in played)
        return np.setdiff1d(np.arange(len(played[0])), kept), env_steps + tried

    def _keep(
        self, network: AgentNetwork, played: list[EpisodeBatch], problems: list[Any]
    ) -> tuple[np.ndarray, int]:
        """Adds the lessons in what was played; returns their rows, and the env steps it took."""
        if self.task.response_length:
            kept = np.flatnonzero(self._useful_throughout(played))
            episodes = played[0].take(kept)
            self._add(episodes, episodes.context, np.arange(len(kept)), episodes.actions)
            return kept, 0
        rows, ways, env_steps = self._ways(played, problems)
        kept, first = np.unique(rows, return_index=True)
        if len(kept):
            chooser, asked = GivenTokens(ways[first]), problems[0].take(kept)
            episodes = play(network, self.task, asked, chooser=chooser)
            same = play(network, self.task, self.task.rewritten(asked, self.rng), chooser=chooser)
            env_steps += episodes.env_steps + same.env_steps
            rewritten = np.where(same.solved[:, None], same.context, episodes.context)
            self._add(episodes, rewritten, np.searchsorted(kept, rows), ways)
        return kept, env_steps

    def _useful_throughout(self, played: list[EpisodeBatch]) -> np.ndarray:
        """(B,) bool: solved in all the batches by as many actions, none of which did nothing."""
        lengths = played[0].lengths
        useful = played[0].effective(self.task).sum(1) == lengths
        for episodes in played:
            useful &= episodes.solved & (episodes.lengths == lengths)
        return useful

    def _add(
        self,
        episodes: EpisodeBatch,
        rewritten: np.ndarray,
        lesson: np.ndarray,
        ways: np.ndarray,
    ) -> None:
        """Keeps solved episodes, their contexts rewritten, and of each some of the ways (W, T) to
        write it; (W,) int64 `lesson` is which one each way is of."""
        if not len(episodes):
            return
        if self.store is None:
            self.store = episodes.take(np.zeros(self.capacity, np.int64))
        places = (self.added + np.arange(len(episodes))) % self.capacity
        self.store.put(places, episodes)
        self.rewritten[places] = rewritten
        self.added += len(episodes)
        order = np.argsort(lesson, kind="stable")
        count = np.bincount(lesson, minlength=len(episodes))
        number = np.arange(len(lesson)) - np.repeat(np.cumsum(count) - count, count)
        order, number = order[number < _MOST_WAYS], number[number < _MOST_WAYS]
        self.ways[places[lesson[order]], number] = ways[order]
        self.num_ways[places] = np.minimum(count, _MOST_WAYS)

    def _without_idle(self, episodes: EpisodeBatch) -> tuple[np.ndarray, np.ndarray]:
        """(B, T) programs, and their (B,) lengths; those that are right without the actions that
        did nothing. (In a wrong one such an action may stand in a wrong place.)"""
        written = np.arange(episodes.actions.shape[1]) < episodes.lengths[:, None]
        did = np.where(episodes.solved[:, None], episodes.effective(self.task), written)
        lengths = did.sum(1)
        programs = np.take_along_axis(episodes.actions, np.argsort(~did, 1, kind="stable"), 1)
        happened = np.arange(programs.shape[1]) < lengths[:, None]
        answer = self.task.vocabulary.answer_token
        return np.where(happened, programs, answer).astype(np.int8), lengths

    def _ways(
        self, played: list[EpisodeBatch], problems: list[Any]
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """What is right on the problems of each row: the program that was played of the first of
        them, if it is, and what two edits make of it.

        Returns:
            (W,) rows, (W, T) programs for the first problem, the one that was played before
            others, and the env steps that trying them took.
        """
        first, lengths = self._without_idle(played[0])
        tools = self._tools()
        # The same plan for the others: tools in the same places, with their own tokens between.
        programs = [first] + [
            with_tools_of(first, self._without_idle(episodes)[0], tools) for episodes in played[1:]
        ]
        rows = np.arange(len(first))
        known = _keys(rows, first)
        right, env_steps = self._right(problems, programs, rows, lengths)
        found = [(rows[right], first[right])]
        for replace in (True, False):
            start, edit = self._edits(programs[0], lengths[rows], replace)
            keys = _keys(rows[start], edit.of(programs[0][start]))
            _, new = np.unique(keys, return_index=True)
            new = new[~np.isin(keys[new], known)]
            start, edit = start[new], edit.take(new)
            known = np.concatenate([known, keys[new]])
            rows, programs = rows[start], [edit.of(each[start]) for each in programs]
            right, tried = self._right(problems, programs, rows, lengths)
            env_steps += tried
            rows, programs = rows[right], [each[right] for each in programs]
            found.append((rows, programs[0]))
        others = [np.concatenate(parts) for parts in zip(*found[1:], strict=True)]
        order = self.rng.permutation(len(others[0]))
        row, way = (np.concatenate([a, b[order]]) for a, b in zip(found[0], others, strict=True))
        return row, way, env_steps

    def _right(
        self, problems: list[Any], programs: list[np.ndarray], rows: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """The indices of programs (W, T), of the problems in those rows, that are right on each;
        and the env steps that trying them took."""
        right, env_steps = np.arange(len(rows)), 0
        for each, written in zip(problems, programs, strict=True):
            row = rows[right]
            env_steps += int(lengths[row].sum())
            right = right[self._solves(each.take(row), written[right], lengths[row])]
        return right, env_steps

    def _tools(self) -> list[int]:
        names = self.task.tools or self.task.vocabulary.actions
        return [self.task.vocabulary.token(name) for name in names]

    def _edits(
        self, programs: np.ndarray, lengths: np.ndarray, replace: bool
    ) -> tuple[np.ndarray, Edits]:
        """(M,) rows, and what a tool moved to another place makes of them; if `replace`, also with
        one tool replaced by another one of those that are in use. Answers stay at the end. Of more
        than `_MOST_EDITS` some are drawn."""
        place = np.arange(programs.shape[1])
        inner = place < lengths[:, None] - 1  # (B, T)
        is_tool = np.isin(programs, self._tools()) & inner
        row, origin, to = np.nonzero(is_tool[:, :, None] & inner[:, None, :])
        in_use = np.unique(programs[is_tool]) if replace else []
        most = _MOST_EDITS // (1 + len(in_use) * int(is_tool.sum(1).max(initial=0)))
        if len(row) > most:
            drawn = np.sort(self.rng.choice(len(row), most, replace=False))
            row, origin, to = row[drawn], origin[drawn], to[drawn]
        rows, edits = [row], [Edits(origin, to, to, programs[row, origin])]
        after, is_tool = moved(programs[row], origin, to), moved(is_tool[row], origin, to)
        for tool in in_use:
            move, at = np.nonzero(is_tool & (after != tool))
            rows.append(row[move])
            edits.append(Edits(origin[move], to[move], at, np.full(len(move), tool)))
        return np.concatenate(rows), Edits.concatenate(edits)

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

    def sample(self, count: int, rewritten: bool) -> tuple[EpisodeBatch, np.ndarray]:
        """Evenly drawn lessons, in all their ways: at least `count` episodes, and (B,) int64, which
        lesson each is of; those of one stand side by side. Their contexts may be `rewritten`."""
        assert self.store is not None
        drawn = self.rng.integers(0, len(self), count)
        lesson = np.repeat(np.arange(count), self.num_ways[drawn])
        starts = np.cumsum(self.num_ways[drawn]) - self.num_ways[drawn]
        way = np.arange(len(lesson)) - starts[lesson]
        episodes = self.store.take(drawn[lesson])
        episodes.actions = self.ways[drawn[lesson], way]
        if rewritten:
            episodes.context = self.rewritten[drawn[lesson]]
        return episodes, lesson

    def lateness(self, episodes: EpisodeBatch) -> np.ndarray:
        """(B,) float32: the sum of the places of the tools in each program, the answer included."""
        place = np.arange(episodes.actions.shape[1], dtype=np.float32)
        counts = np.isin(episodes.actions, self._tools()) & (place < episodes.lengths[:, None])
        return counts @ place

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "store": None if self.store is None else dict(self.store.columns()),
            "rewritten": self.rewritten.copy(),
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
        for name in ("rewritten", "ways", "num_ways"):
            setattr(self, name, np.array(state[name]))
        self.added = state["added"]
        self.rng.bit_generator.state = state["stream"]


def _keys(rows: np.ndarray, programs: np.ndarray) -> np.ndarray:
    """(B,) uint64: equal for equal rows with equal programs; of two others, one pair in 10^19."""
    keys = rows.astype(np.uint64)
    for column in programs.T.astype(np.uint64):
        keys = keys * _BASE + column
        keys ^= keys >> np.uint64(29)
    return keys


@dataclass
class Edits(Columns):
    """M changes of a program: the token at place `origin` is taken out and put in at `to`, then the
    one at `at` becomes `tool`."""

    origin: np.ndarray  # (M,) int64
    to: np.ndarray  # (M,) int64
    at: np.ndarray  # (M,) int64
    tool: np.ndarray  # (M,) int8

    def of(self, programs: np.ndarray) -> np.ndarray:
        """(M, T) of (M, T) programs."""
        changed = moved(programs, self.origin, self.to)
        np.put_along_axis(changed, self.at[:, None], self.tool[:, None].astype(np.int8), 1)
        return changed


def with_tools_of(programs: np.ndarray, others: np.ndarray, tools: Sequence[int]) -> np.ndarray:
    """(B, T) the tools of `programs` in their places, between them what is no tool in `others`."""
    is_tool = np.isin(programs, tools)
    rest = np.take_along_axis(others, np.argsort(np.isin(others, tools), 1, kind="stable"), 1)
    number = np.maximum(np.cumsum(~is_tool, 1) - 1, 0)
    return np.where(is_tool, programs, np.take_along_axis(rest, number, 1))


def moved(programs: np.ndarray, origin: np.ndarray, to: np.ndarray) -> np.ndarray:
    """(B, T) programs with the token at place `origin` (B,) taken out and put in at `to` (B,)."""
    place = np.arange(programs.shape[1])
    first, last = np.minimum(origin, to)[:, None], np.maximum(origin, to)[:, None]
    shift = np.sign(to - origin)[:, None]
    source = place + shift * ((first <= place) & (place <= last))
    source = np.where(place == to[:, None], origin[:, None], source)
    return np.take_along_axis(programs, source, 1)
