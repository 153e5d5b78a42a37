"""Whole episodes as named columns: what env runners send and learners read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from toolagent.tasks import Task
from toolagent.tasks.columns import Columns


@dataclass(frozen=True)
class EpisodeLength:
    """One episode as RLlib's evaluation looks at it: it asks each for its steps."""

    length: int

    def env_steps(self) -> int:
        """Actions taken."""
        return self.length

    def agent_steps(self) -> int:
        """The same: there is one agent."""
        return self.length


@dataclass
class EpisodeBatch(Columns):
    """B finished episodes of up to T actions; nothing in it after an episode's end is meant.

    Only what the learner needs, in the smallest dtypes: about 85 bytes an episode for T = 7.
    What was observed is in here too: `context` and `stage` directly, and the previous token of
    step t is action t-1 (the vocabulary's `start` at the first step); so is the response.
    """

    stage: np.ndarray  # (B,) int8
    context: np.ndarray  # (B, L) int8
    actions: np.ndarray  # (B, T) int8, `answer` after the end: an action, though none is taken
    lengths: np.ndarray  # (B,) int8: actions taken, the last one included
    rewards: np.ndarray  # (B, T) float32, 0 after the end
    log_probabilities: np.ndarray  # (B, T) float32 of the actions when chosen, 0 after the end
    status: np.ndarray  # (B, T) int8: the machine's status after each action, 0 after the end
    solved: np.ndarray  # (B,) bool: the answer is exactly right
    explored: np.ndarray  # (B,) bool: played by an explorer, not by the policy
    retried: np.ndarray  # (B,) bool: the problem is one that was failed before
    # (B, T, R) int8: what was observed of the tokens that each action was answered with, `pad`
    # after the end; R is 0 where tools answer nothing
    response: np.ndarray
    # (B,) float32: the leave-one-out baseline, the mean discounted return of the other episodes of
    # the group (`draw.ProblemDraw`); 0 where there is no other
    baseline: np.ndarray

    @classmethod
    def restored(cls, columns: Mapping[str, np.ndarray]) -> EpisodeBatch:
        """See `Columns`; a checkpoint that is older than responses has none."""
        none = np.zeros((*columns["actions"].shape, 0), np.int8)
        return cls(**{"response": none, **columns})

    def __iter__(self) -> Iterator[EpisodeLength]:
        """For RLlib's evaluation, which loops over episodes. Nothing of ours does."""
        return map(EpisodeLength, self.lengths.tolist())

    @property
    def env_steps(self) -> int:
        """Actions taken in live episodes."""
        return int(self.lengths.sum(dtype=np.int64))

    def effective(self, task: Task) -> np.ndarray:
        """(B, T) bool: actions that were not refused; where the task refuses none, those that
        changed the machine's status, and answers.
        """
        happened = np.arange(self.actions.shape[1]) < self.lengths[:, None]
        if task.refusal_token is not None:
            return happened & (self.response[:, :, 0] != task.refusal_token)
        before = np.zeros_like(self.status)  # the status before the first action is 0
        before[:, 1:] = self.status[:, :-1]
        return happened & ((self.status != before) | (self.actions == task.vocabulary.answer_token))

    @property
    def returns(self) -> np.ndarray:
        """(B,) float32: undiscounted sum of rewards."""
        return self.rewards.sum(axis=1)

    def discounted_returns(self, gamma: float) -> np.ndarray:
        """(B,) float32: the sum of gamma^t times the reward of step t = 0, 1, ..."""
        if gamma == 1.0:
            return self.returns
        return self.rewards @ np.float32(gamma) ** np.arange(
            self.rewards.shape[1], dtype=np.float32
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for _, column in self.columns())


def empty_batch(task: Task, context: np.ndarray, stage: np.ndarray) -> EpisodeBatch:
    """A batch for `len(stage)` episodes of which no action has been taken."""
    shape, pad = (len(stage), task.max_actions), task.vocabulary.pad_token
    return EpisodeBatch(
        # Tasks of other modules may have wider ones.
        stage=stage.astype(np.int8, copy=False),
        context=context.astype(np.int8, copy=False),
        actions=np.full(shape, task.vocabulary.answer_token, np.int8),
        lengths=np.zeros(len(stage), np.int8),
        rewards=np.zeros(shape, np.float32),
        log_probabilities=np.zeros(shape, np.float32),
        status=np.zeros(shape, np.int8),
        solved=np.zeros(len(stage), bool),
        explored=np.zeros(len(stage), bool),
        retried=np.zeros(len(stage), bool),
        response=np.full((*shape, task.response_length), pad, np.int8),
        baseline=np.zeros(len(stage), np.float32),
    )
