"""Writes a run's checkpoints when they are due, and goes on where one can't be written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.training_state import list_checkpoints, write_checkpoint
from toolagent.config import Settings, config_sha256
from toolagent.curriculum.callback import CurriculumCallback
from toolagent.phases import timed
from toolagent.rollouts.certification import StageAccuracy

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

    from toolagent.checkpoints.run_files import RunState


class CheckpointKeeper:
    """The checkpoints of one run, or of one session of a resumed one.

    A disk that is full, read-only or gone costs a warning; the last good checkpoint stays, and
    the next one is tried when it is due.

    Args:
        algorithm: whose state is saved, and `callback` its curriculum callback.
        warn: told, in one line, what could not be written.
        before: that of the algorithm before, where learning was restarted; its figures go on.
    """

    def __init__(
        self,
        settings: Settings,
        algorithm: Algorithm,
        callback: CurriculumCallback,
        folder: RunFolder,
        warn: Callable[[str], None],
        before: CheckpointKeeper | None = None,
    ):
        self.settings, self.algorithm, self.callback = settings, algorithm, callback
        self.folder, self.warn = folder, warn
        self.last: Path | None = None  # the last one that was written
        self.fault: str | None = None  # why the latest could not be
        self.written, self.seconds = (before.written, before.seconds) if before else (0, 0.0)
        self._since = time.perf_counter()

    @property
    def due(self) -> bool:
        """The configured time has passed since the last attempt."""
        return time.perf_counter() - self._since >= self.settings.run.checkpoint_every_s

    @timed("write a checkpoint")
    def write(self, state: RunState, stages: Sequence[StageAccuracy] = ()) -> Path | None:
        """Writes a checkpoint; None, with a warning, if that is not possible.

        Args:
            state: of the run.
            stages: certified accuracies; without any, those measured last count.
        """
        started = time.perf_counter()
        settings = self.settings
        wanted = settings.curriculum.stages
        rows = stages or self.callback.measured
        try:
            # What the checkpoint continues from must not be lost with the machine.
            self.folder.sync_progress()
            self.last = write_checkpoint(
                self.folder.checkpoints,
                self.algorithm,
                self.callback.refresh_network(self.algorithm),
                state,
                settings.run.keep_checkpoints,
                {str(row.stage): row.accuracy for row in rows if row.stage in wanted},
                task_name=settings.task,
                seed=settings.seed,
                stages=[stage.record() for stage in stages],
                trained_stages=settings.curriculum.trained_stages(self.callback.task.stages),
                config_sha256=config_sha256(settings),
            )
        except OSError as error:
            self.fault = f"{error.strerror or error}"
            self.warn(f"warning: no checkpoint could be written ({self.fault}); {self._kept()}")
            return None
        finally:
            self._since = time.perf_counter()
            self.seconds += self._since - started
        self.folder.share()
        self.fault = None
        self.written += 1
        return self.last

    def _kept(self) -> str:
        last = self.last or next(reversed(list_checkpoints(self.folder.checkpoints)), None)
        kept = f"the last good one is {last.name}" if last else "there is none yet"
        return f"{kept}; tried again in {self.settings.run.checkpoint_every_s:g} s"
