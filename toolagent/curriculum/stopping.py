"""What ends training: a limit, or that every stage of the curriculum is solved."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from toolagent.curriculum.callback import CurriculumCallback
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.certification import are_solved, is_solved


class TrainingClock:
    """Counts the seconds of training, over all sessions of a training that is resumed.

    Args:
        seconds: of the sessions before.
    """

    def __init__(self, seconds: float = 0.0):
        self._began = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """So far; measuring, certifying and writing checkpoints are included."""
        return time.perf_counter() - self._began


def first_limit_reached(limits: Iterable[tuple[str, float | None, float]]) -> str | None:
    """The name of the first limit that is reached; None if none is.

    Args:
        limits: (name, limit, value so far); a limit of None is never reached.
    """
    for name, limit, value in limits:
        if limit is not None and value >= limit:
            return name
    return None


class StageCertifier:
    """Certifies the network that the curriculum measured last.

    To certify a stage is to play all of its problems, or the fixed sample of a stage with too many
    to be listed. That takes long, so only stages with a faultless measurement are certified.

    Args:
        curriculum: the callback that measures.
    """

    def __init__(self, curriculum: CurriculumCallback):
        self._curriculum = curriculum
        self._failed: dict[int, Any] = {}  # of `certification.is_solved`

    @property
    def candidates(self) -> set[int]:
        """The stages of which the latest measurement solved every problem."""
        return {row.stage for row in self._curriculum.measured if row.faultless}

    def is_solved(self, stage: int) -> bool:
        """Whether the network solves every problem of the stage."""
        return is_solved(self._network, self._curriculum.task, stage, self._failed)

    def all_solved(self, known: Mapping[int, bool] | None = None) -> bool:
        """Whether the network solves every stage that the curriculum names.

        Args:
            known: stage -> what `is_solved` said of this network; these are not played again.
        """
        known = known or {}
        stages = self._curriculum.settings.stages
        if not stages <= self.candidates - {stage for stage in known if not known[stage]}:
            return False
        left = stages - known.keys()
        return are_solved(self._network, self._curriculum.task, left, self._failed)

    @property
    def _network(self) -> AgentNetwork:
        assert self._curriculum.network is not None
        return self._curriculum.network
