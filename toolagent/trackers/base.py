"""The interface of a tracker: a service or format, besides the run's own files, that shows runs."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# How a run ended, in words that every tracker can translate into its own.
FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"


@dataclass(frozen=True)
class RunDescription:
    """What a tracker receives when a run begins."""

    name: str  # the folder's
    folder: Path
    document: dict[str, Any]  # the resolved configuration, as `config.yaml` has it
    tags: dict[str, str]


class Tracker(abc.ABC):
    """One tracker. `check` comes first and writes nothing; then `start`, several `log`, `end`.

    `log` and `end` may be called in another thread than `start`, never concurrently. An
    exception from them counts as a failure of the tracker, not of the run.
    """

    name: ClassVar[str]
    background: ClassVar[bool] = True  # `log` may wait for a network

    @abc.abstractmethod
    def check(self, resumed: str | None) -> None:
        """Refuses what can't work, before anything is started.

        Args:
            resumed: the identifier that `start` returned in an earlier session of this run.

        Raises:
            UserError: a package is missing, the server does not answer, or the resumed run is gone.
        """

    @abc.abstractmethod
    def start(self, run: RunDescription, resumed: str | None) -> str | None:
        """Creates the run in the tracker or continues it; returns its identifier."""

    def go_back(self, step: int) -> None:  # noqa: B027
        """The run continues from that env step: later figures are void and will be sent again.

        Called between two `log`s, in the thread that called `start`. Does nothing by default: not
        every tracker can remove figures.
        """

    @abc.abstractmethod
    def log(self, metrics: Mapping[str, float], more: Mapping[str, float], step: int) -> None:
        """Writes the figures of one iteration.

        Args:
            metrics: the main figures.
            more: everything else that RLlib reports, where it is asked for (`run.rllib_figures`).
            step: env steps.
        """

    @abc.abstractmethod
    def end(self, status: str, files: Mapping[str, Path], summary: Mapping[str, float]) -> None:
        """Ends the run in the tracker.

        Args:
            status: FINISHED, FAILED or INTERRUPTED.
            files: the run's result files by name; empty if the run failed.
            summary: of `summary.json`; empty if the run failed.
        """
