"""Explorers: some of a batch's episodes are not played by the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from toolagent.tasks import Task


class ExplorerTables(NamedTuple):
    """What explorers know from all episodes before (`learning.trials.TrialTable`)."""

    log_weights: np.ndarray  # (statuses, A) float32: log-probabilities; -inf: nothing is done by it
    seen: np.ndarray  # (A,) bool: the action has been seen in a context or in an answer


@dataclass(frozen=True)
class ExplorersStep:
    """What is known where n of the explorers' episodes choose a token."""

    task: Task
    number: int  # 0 is the first step
    rows: np.ndarray  # (n,) which of the explorers' episodes they are
    logits: torch.Tensor  # (n, A) of the policy
    registers: Any  # n rows of the task's registers, of which only the status is looked at
    response: np.ndarray | None  # (n, R): what is observed at this step; None: tools answer nothing

    def status(self) -> np.ndarray:
        """(n,) int64: the machine's status before the token."""
        return self.task.status(self.registers).astype(np.int64)


class Explorers(Protocol):
    """Plays the last episodes of a batch in the policy's place."""

    def __len__(self) -> int:
        """How many episodes."""
        ...

    def log_probabilities(self, step: ExplorersStep) -> torch.Tensor:
        """(n, A) float32: the log-probabilities that n tokens are drawn by; -inf for never."""
        ...


@dataclass(frozen=True)
class TrialExplorers:
    """Explorers that draw tokens by machine status, from a table."""

    count: int
    tables: ExplorerTables

    def __len__(self) -> int:
        return self.count

    def log_probabilities(self, step: ExplorersStep) -> torch.Tensor:
        """(n, A) (see `Explorers`)."""
        return torch.from_numpy(self.tables.log_weights[step.status()])


def certain(tokens: torch.Tensor, num_actions: int) -> torch.Tensor:
    """(n, A) log-probabilities of distributions that have one token each, (n,) int64."""
    certainly = torch.full((len(tokens), num_actions), -torch.inf)
    return certainly.scatter_(1, tokens.unsqueeze(1), 0.0)
