"""An update's columns: the policy's episodes, and replayed ones behind them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from toolagent.learning.batches import STEP_COLUMNS
from toolagent.learning.dataflow_replay import DataflowReplay
from toolagent.learning.success_replay import SuccessReplay
from toolagent.learning.trials import TrialTable
from toolagent.learning.verified_replay import VerifiedReplay
from toolagent.phases import timed
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.explorers import ExplorerTables
from toolagent.tasks import Task

_EPISODE_COLUMNS = ("stage", "context", "lengths", "baseline")

REPLAY_SLOTS = 256  # programs; a stage's coincidences are about a hundred
REPLAY_EXAMPLES = 64  # solved problems of each
DATAFLOW_SLOTS = 256  # programs of all kinds of problems
DATAFLOW_EXAMPLES = 48
MIN_TRIES = 20  # of a token in a status before it counts as having no effect
SELDOM_REFUSED = 0.5  # explorers that copy write tokens that did something more often than that
RATE = 0.05  # of all moving shares, per update


class Exploration:
    """Explorers and success replay, between the env runners and the learners.

    It runs in the algorithm's process and counts the batches of all runners; what runners need of
    it is sent with the next weights.

    - *Explorers* play a share of the episodes on the curriculum's stage, by a `TrialTable` or on
      `Detours`. Explorer episodes are excluded from the policy gradient and from mean returns;
      they only feed the replay.
    - *Success replay* adds solved episodes of that stage to an update, for imitation.

    Explorers and replay end for a stage when the policy solves `until_solved` of its fresh
    episodes (a moving share); explorers that try tokens get fewer on the way there.

    Args:
        config: a `ToolAgentConfig`.
        task: of the episodes.
    """

    def __init__(self, config: Any, task: Task):
        self.explorer_share = config.explorer_share
        self.until_solved = config.explore_until_solved
        self.entropy_follows_return = config.entropy_follows_return
        self.replay_episodes = config.replay_episodes if config.replay_coeff > 0 else 0
        self.stage = 0  # the highest seen
        self.solved_share = np.zeros(task.stages.stop)
        self.copies = config.explorer_kind == "copies"
        self.table = TrialTable(task, MIN_TRIES, SELDOM_REFUSED if self.copies else 0.0)
        seed = None if config.seed is None else (int(config.seed), 0x7265706C)  # 'repl'
        streams = np.random.SeedSequence(seed).spawn(task.stages.stop)
        self.trials = config.explorer_kind == "trials"
        self.counts_tokens = config.explorer_kind != "detours"
        # Programs of all stages stand in one store where they are told apart by their kinds.
        self.replay: list[SuccessReplay | VerifiedReplay] = [
            _replay(config, task, np.random.default_rng(stream))
            for stream in (streams[:1] if self.copies else streams)
        ]

    def for_runners(self) -> tuple[float, ExplorerTables | None]:
        """What env runners need: the share of explorers, and, if there are any, what they know."""
        solved = self.solved_share[self.stage]
        share = self.explorer_share if solved < self.until_solved else 0.0
        if self.trials:  # fewer on the way; on detours the last missing plans are the rarest
            share *= 1 - solved
        return share, self.table.for_explorers() if share else None

    @timed("exploration and replay columns")
    def learner_columns(self, batch: EpisodeBatch) -> dict[str, np.ndarray]:
        """The columns of an update: what the policy played, and replayed episodes behind it.

        Returns:
            The batch's columns that are learned from, `replayed` (B,) bool and `entropy_weight`
            (B,) float32.
        """
        self.stage = int(batch.stage.max())
        self._count(batch)
        replayed = None
        if self.replay_episodes and self.copies:
            replayed = self.replay[0].sample(self.replay_episodes)
        elif self.replay_episodes and self.solved_share[self.stage] < self.until_solved:
            replayed = self.replay[self.stage].sample(self.replay_episodes)
        by_policy = np.flatnonzero(~batch.explored)
        parts = [(batch, by_policy)]
        if replayed is not None:
            parts.append((replayed, np.arange(len(replayed))))
        columns = {
            name: np.concatenate([getattr(part, name)[rows] for part, rows in parts])
            for name in (*_EPISODE_COLUMNS, *STEP_COLUMNS)
        }
        baseline = columns["baseline"]
        return columns | {
            "entropy_weight": self._entropy_weight(baseline),
            "replayed": np.arange(len(baseline)) >= len(by_policy),
        }

    def _entropy_weight(self, baseline: np.ndarray) -> np.ndarray:
        """(B,) float32: how much of the entropy bonus each episode gets.

        All of it, or with `entropy_follows_return` the mean return of the others of its group.
        Where no episode of a group is rewarded, only the bonus has a gradient: it makes the policy
        random there and undoes what was learned elsewhere. Early in a stage that is wanted: the
        least weight falls from 1 to 0 until half of the episodes are solved.
        """
        if not self.entropy_follows_return:
            return np.ones(len(baseline), np.float32)
        least = max(0.0, 1 - 2 * self.solved_share[self.stage])
        return np.maximum(baseline, least).astype(np.float32)

    def _count(self, batch: EpisodeBatch) -> None:
        if self.explorer_share > 0 and self.counts_tokens:
            self.table.add(batch)
        here = batch.stage == self.stage
        if self.replay_episodes and self.copies:
            self.replay[0].add(batch)
        elif self.replay_episodes:
            self.replay[self.stage].add(batch, np.flatnonzero(here))
        # Problems that were failed before say nothing of how much of the stage is solved.
        by_policy = batch.solved[here & ~batch.explored & ~batch.retried]
        if len(by_policy):
            self.solved_share[self.stage] += RATE * (
                by_policy.mean() - self.solved_share[self.stage]
            )

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint; a copy, since all of it goes on changing in place."""
        return copy.deepcopy(
            {
                "stage": self.stage,
                "solved_share": self.solved_share,
                "table": self.table.get_state(),
                "replay": [store.get_state() for store in self.replay],
            }
        )

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self.stage = state["stage"]
        self.solved_share = np.array(state["solved_share"])
        self.table.set_state(state["table"])
        for store, saved in zip(self.replay, state["replay"], strict=True):
            store.set_state(saved)


def _replay(config: Any, task: Task, rng: np.random.Generator) -> SuccessReplay | VerifiedReplay:
    """The store of one stage that goes with the kind of explorers."""
    if config.explorer_kind == "detours":
        return VerifiedReplay(rng, config.gamma)
    if config.explorer_kind == "copies":
        return DataflowReplay(DATAFLOW_SLOTS, DATAFLOW_EXAMPLES, task, rng)
    return SuccessReplay(REPLAY_SLOTS, REPLAY_EXAMPLES, task, rng)
