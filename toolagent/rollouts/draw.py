"""Draws the problems of a `sample()` call: groups, failed problems, and explorers' episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.envs.vector import ToolVectorEnv
from toolagent.rollouts.copying import CopyingExplorers
from toolagent.rollouts.detours import Detours, draw_detours
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.explorers import Explorers, ExplorerTables, TrialExplorers
from toolagent.rollouts.failed_problems import FailedProblems

EXPLORER_KINDS = ("trials", "detours", "copies")


@dataclass(frozen=True)
class Drawn:
    """What to play: the policy's groups first, the explorers' episodes behind them."""

    problems: Any  # (B,) of the task
    group_size: int
    fresh: np.ndarray  # (groups,) bool: the group's problem is not one that was failed before
    explorers: Explorers | None


class ProblemDraw:
    """Draws problems from the environment's stream, and from those that were failed.

    A *group* is `group_size` episodes of one problem, side by side (1: every episode has a
    problem of its own), each with what the problem hides drawn anew (`Task.siblings`). Explorers
    that try tokens have problems of their own, as have those that copy; explorers on detours come
    in groups of one structure with different numbers. The last two mostly have failed problems.

    Args:
        group_size: of the policy's episodes, and of detours.
        failed_share: how many of the current stage's problems are drawn from the failed ones.
        explorer_kind: one of `EXPLORER_KINDS`.
        gamma: the discount of what a group's episodes are compared by.
        practice: problems are drawn as the task's `practice` does.
    """

    def __init__(
        self,
        group_size: int = 1,
        failed_share: float = 0.0,
        explorer_kind: str = "trials",
        gamma: float = 1.0,
        practice: bool = False,
    ):
        self.group_size, self.failed_share = group_size, failed_share
        self.explorer_kind, self.gamma = explorer_kind, gamma
        self.practice = practice
        self.failed = FailedProblems()

    def draw(
        self, env: ToolVectorEnv, count: int, explorer_share: float, tables: ExplorerTables | None
    ) -> Drawn:
        """Problems for `count` episodes.

        Args:
            env: whose stream, stage and stage mix are used.
            count: of episodes, explorers included; a number that is no multiple of the group's
                size is played without groups.
            explorer_share: of the count; at least one group is the policy's.
            tables: what explorers know.
        """
        size = self.group_size if count % self.group_size == 0 else 1
        exploring = size * min(round(count * explorer_share / size), count // size - 1)
        groups = (count - exploring) // size
        # The problems of explorers that try tokens come from the policy's stream, behind its own.
        trials = exploring if self.explorer_kind == "trials" else 0
        problems = env.fresh_problems(groups + trials, current=trials, practice=self.practice)
        fresh = np.ones(groups, bool)
        if self.failed_share > 0:
            fresh = self.failed.mix_in(
                problems, groups, env.stage, self.failed_share, env.np_random
            )
        # Each group's problem `size` times, then the explorers' once each.
        rows = np.repeat(np.arange(groups), size)
        every = problems.take(np.concatenate([rows, np.arange(groups, len(problems))]))
        if size > 1:
            every = env.task.siblings(every, env.np_random)
        if not exploring:
            return Drawn(every, size, fresh, None)
        if trials:
            assert tables is not None
            return Drawn(every, size, fresh, TrialExplorers(exploring, tables))
        if self.explorer_kind == "copies":
            assert tables is not None
            theirs = self._worth_exploring(env, exploring)
            own = np.random.default_rng(int(env.np_random.integers(2**63)))
            explorers: Explorers = CopyingExplorers(own, env.task, theirs.context, tables)
        else:
            structures = self._worth_exploring(env, exploring // size)
            theirs = env.task.variants(
                structures.take(np.repeat(np.arange(len(structures)), size)), env.np_random
            )
            explorers = draw_detours(
                env.np_random,
                env.task.action_limit(structures.stage),
                size,
                env.task.vocabulary.num_actions,
            )
        return Drawn(type(every).concatenate([every, theirs]), size, fresh, explorers)

    def _worth_exploring(self, env: ToolVectorEnv, count: int) -> Any:
        """Failed problems, or as long as there are few of them, fresh ones of the stage."""
        drawn = self.failed.sample(count, env.stage, env.np_random)
        if drawn is None:
            return env.fresh_problems(count, current=count, practice=self.practice)
        return drawn

    def compare(self, batch: EpisodeBatch, drawn: Drawn, stage: int) -> None:
        """Tells each episode how the others of its group went, and keeps what was failed."""
        size, groups = drawn.group_size, len(drawn.fresh)
        batch.retried[: groups * size] = np.repeat(~drawn.fresh, size)
        if size > 1:
            end = len(batch) if isinstance(drawn.explorers, Detours) else groups * size
            returns = batch.discounted_returns(self.gamma)[:end].reshape(-1, size)
            others = (returns.sum(1, keepdims=True) - returns) / (size - 1)
            batch.baseline[:end] = others.reshape(-1)
        if self.failed_share > 0:
            solved = batch.solved[: groups * size].reshape(groups, size).mean(1)
            played = drawn.problems.take(np.arange(groups) * size)
            self.failed.add(played, solved, drawn.fresh, stage)
