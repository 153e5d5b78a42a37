"""What a tracker is: a place besides the run's own files that people look at runs in."""

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
    """What a tracker is told of a run when it begins."""

    name: str  # the folder's
    folder: Path
    document: dict[str, Any]  # the resolved configuration, as `config.yaml` has it
    tags: dict[str, str]


class Tracker(abc.ABC):
    """One place. `check` comes first and writes nothing; then `start`, any number of `log`, `end`.

    `log` and `end` may be called in another thread than `start`, but never two at once. Whatever
    they raise is a fault of the place, not of the run.
    """

    name: ClassVar[str]
    background: ClassVar[bool] = True  # `log` may wait for a network

    @abc.abstractmethod
    def check(self, resumed: str | None) -> None:
        """Refuses what can't work, before anything is started.

        Args:
            resumed: the identifier that `start` returned in an earlier session of this run.

        Raises:
            UserError: a package is missing, nobody answers, or the resumed run is not there.
        """

    @abc.abstractmethod
    def start(self, run: RunDescription, resumed: str | None) -> str | None:
        """Begins, or goes on with, the run there; returns what identifies it."""

    def go_back(self, step: int) -> None:  # noqa: B027
        """The run goes on from that env step: figures of later ones are void and come again.

        Called between two `log`s, in the thread that called `start`. Does nothing by default: not
        every place can take figures back.
        """

    @abc.abstractmethod
    def log(self, metrics: Mapping[str, float], more: Mapping[str, float], step: int) -> None:
        """Writes the figures of one iteration.

        Args:
            metrics: those that people compare runs by.
            more: all else that RLlib reports.
            step: env steps.
        """

    @abc.abstractmethod
    def end(self, status: str, files: Mapping[str, Path], summary: Mapping[str, float]) -> None:
        """Ends the run there.

        Args:
            status: FINISHED, FAILED or INTERRUPTED.
            files: the run's results, by what each is called; none if it failed.
            summary: what the run came to; nothing if it failed.
        """
