"""The programs of a batch of episodes, counted: the most frequent one, and the tools in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.tasks import Task


@dataclass(frozen=True)
class Programs:
    """What was written in B episodes."""

    most_frequent: str  # its tokens' names; of equally frequent programs that of lowest tokens
    share: float  # 0..1: how many of the episodes have it
    distinct: int  # different programs
    tools: dict[str, float]  # by name: the share of the programs in which the tool occurs
    solved_length: float | None  # mean number of actions of solved episodes; None: none is solved

    def record(self) -> dict[str, Any]:
        """As `progress.jsonl` has it: shares to four digits, tools that occur only."""
        return {
            "program": self.most_frequent,
            "share": round(self.share, 4),
            "distinct": self.distinct,
            "tools": {name: round(share, 4) for name, share in self.tools.items() if share},
            "solved_length": None if self.solved_length is None else round(self.solved_length, 4),
        }


def programs_of(
    task: Task, actions: np.ndarray, solved: np.ndarray, lengths: np.ndarray
) -> Programs:
    """Counts programs; columns only, no Python per episode.

    Args:
        task: whose `tools` are counted.
        actions: (B, T) int8, B > 0, the same token in all places after an episode's end.
        solved: (B,) bool.
        lengths: (B,) actions that count.

    Raises:
        ValueError: there are no episodes.
    """
    if not len(actions):
        raise ValueError("no episodes to count programs of")
    # A row as one opaque value, padding included: equal rows are equal programs.
    rows = np.ascontiguousarray(actions).view(f"V{actions.shape[1] * actions.itemsize}").ravel()
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    top = int(counts.argmax())
    winner = actions[first[top], : lengths[first[top]]]
    happened = np.arange(actions.shape[1]) < lengths[:, None]  # (B, T)
    vocabulary = task.vocabulary
    occurs = np.zeros((len(actions), vocabulary.num_actions), bool)
    episode, step = np.nonzero(happened)
    occurs[episode, actions[episode, step]] = True
    shares = occurs.mean(axis=0)
    return Programs(
        most_frequent=vocabulary.text(winner),
        share=float(counts[top] / len(actions)),
        distinct=len(counts),
        tools={
            name: float(shares[vocabulary.token(name)]) for name in task.tools or vocabulary.actions
        },
        solved_length=float(lengths[solved].mean()) if solved.any() else None,
    )
