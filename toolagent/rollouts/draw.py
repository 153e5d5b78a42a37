"""Draws the problems of a `sample()` call: groups, failed problems, and explorers' episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolagent.envs.vector import ToolVectorEnv
from toolagent.rollouts.detours import Detours, draw_detours
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.explorers import Explorers, TrialExplorers
from toolagent.rollouts.failed_problems import FailedProblems

EXPLORER_KINDS = ("trials", "detours")


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
    problem of its own). Explorers that try tokens have problems of their own; explorers on
    detours come in groups of one structure with different numbers, mostly of failed problems.

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
        self, env: ToolVectorEnv, count: int, explorer_share: float, log_weights: torch.Tensor
    ) -> Drawn:
        """Problems for `count` episodes.

        Args:
            env: whose stream, stage and stage mix are used.
            count: of episodes, explorers included; a number that is no multiple of the group's
                size is played without groups.
            explorer_share: of the count; at least one group is the policy's.
            log_weights: for explorers that try tokens, see `Explorers`.
        """
        size = self.group_size if count % self.group_size == 0 else 1
        exploring = size * min(round(count * explorer_share / size), count // size - 1)
        groups = (count - exploring) // size
        detours = exploring > 0 and self.explorer_kind == "detours"
        own = 0 if detours else exploring  # explorers' problems behind the policy's
        problems = env.fresh_problems(groups + own, current=own, practice=self.practice)
        fresh = np.ones(groups, bool)
        if self.failed_share > 0:
            fresh = self.failed.mix_in(
                problems, groups, env.stage, self.failed_share, env.np_random
            )
        # Each group's problem `size` times, then the explorers' once each.
        rows = np.repeat(np.arange(groups), size)
        rows = np.concatenate([rows, np.arange(groups, len(problems))])
        if not detours:
            explorers = TrialExplorers(exploring, log_weights) if exploring else None
            return Drawn(problems.take(rows), size, fresh, explorers)
        structures = self._worth_a_detour(env, exploring // size)
        variants = env.task.variants(
            structures.take(np.repeat(np.arange(len(structures)), size)), env.np_random
        )
        taken = draw_detours(
            env.np_random,
            env.task.action_limit(structures.stage),
            size,
            env.task.vocabulary.num_actions,
        )
        every = problems.take(np.concatenate([rows, np.zeros(exploring, np.int64)]))
        every.put(np.arange(len(rows), len(rows) + exploring), variants)
        return Drawn(every, size, fresh, taken)

    def _worth_a_detour(self, env: ToolVectorEnv, count: int) -> Any:
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
