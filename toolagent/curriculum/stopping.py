"""What ends training: a limit, or that every stage of the curriculum is solved."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from toolagent.curriculum.callback import CurriculumCallback
from toolagent.models.base import AgentNetwork
from toolagent.rollouts.certification import StageAccuracy, certify_if_solved


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

    Attributes:
        found: stage -> what `certify_if_solved` said of the network that was asked about last.
    """

    def __init__(self, curriculum: CurriculumCallback):
        self._curriculum = curriculum
        self._failed: dict[int, Any] = {}  # of `certify_if_solved`
        self._measured: Any = None  # of the network that `found` is of
        self.found: dict[int, StageAccuracy | None] = {}

    @property
    def candidates(self) -> set[int]:
        """The stages of which the latest measurement solved every problem."""
        return {row.stage for row in self._curriculum.measured if row.faultless}

    def is_solved(self, stage: int) -> bool:
        """Whether the network solves every problem of the stage."""
        if self._measured is not self._curriculum.measured:
            self._measured, self.found = self._curriculum.measured, {}
        if stage not in self.found:
            self.found[stage] = certify_if_solved(
                self._network, self._curriculum.task, stage, self._failed
            )
        return self.found[stage] is not None

    def all_solved(self) -> bool:
        """Whether the network solves every stage that the curriculum names."""
        stages = self._curriculum.settings.stages
        if not stages <= self.candidates:
            return False
        # Those that were failed before come first.
        ordered = sorted(stages, key=lambda stage: (stage not in self._failed, stage))
        return all(map(self.is_solved, ordered))

    @property
    def _network(self) -> AgentNetwork:
        assert self._curriculum.network is not None
        return self._curriculum.network
