"""Keeps a run going: where learning fails, a new algorithm continues from the last checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.training_state import newest_checkpoint, set_aside_later
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_internals import actor_manager
from toolagent.config import Settings
from toolagent.curriculum.callback import CurriculumCallback
from toolagent.errors import UserError, quoted
from toolagent.learning.faults import LearningFailed, lost_learners
from toolagent.run.display import Display
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.training import Outcome, RunState, train
from toolagent.run.watchdog import Watchdog
from toolagent.trackers import Trackers
from toolagent.trackers.prometheus import RunMetrics

STOP_WITHIN_S = 5.0  # an env runner that has not ended its work by then is ended


class RunFailed(Exception):
    """A run that can't go on; the message is one line for the user, who may resume it."""


class Supervision:
    """One run, over as many algorithms as it takes.

    Args:
        settings: of the run.
        build: makes an algorithm.
        prepare: puts it where a `Start` says.
        finished: given the algorithm that came to a stop, before it is ended.
        folder: to write to.
        display: to show.
        trackers: told of every iteration.
        interrupt: taking in signals.
        ray_since: as for `train`.
    """

    def __init__(
        self,
        settings: Settings,
        build: Callable[[], Any],
        prepare: Callable[[Any, Any], None],
        finished: Callable[[Any], None],
        folder: RunFolder,
        display: Display,
        trackers: Trackers,
        interrupt: Interrupt,
        ray_since: float | None = None,
    ):
        self.settings, self.folder, self.display = settings, folder, display
        self._trackers = trackers
        self._build, self._prepare, self._finished = build, prepare, finished
        self._interrupt, self._ray_since = interrupt, ray_since
        run = settings.run
        self._watchdog = Watchdog(display.event, run.stall_warning_s, run.learner_timeout_s)
        # Over all restarts: a counter that began again would count twice.
        self._metrics = RunMetrics(
            folder.path, settings.task, run.checkpoint_every_s, enabled=run.metrics
        )
        self._state = RunState()
        self._keeper: CheckpointKeeper | None = None

    def run(self, start: Any, rows: list[dict[str, Any]]) -> Outcome:
        """Trains from the start to a stop.

        Args:
            start: a new run's or a resumed one's `run.Start`.
            rows: of the progress so far.

        Raises:
            RunFailed: learning failed more often than `run.max_learner_restarts`, or the folder
                can't be written when it is to begin again.
        """
        most, restarts = self.settings.run.max_learner_restarts, 0
        with self._watchdog, self._metrics:
            self._state = RunState(**start.state)
            while True:
                try:
                    return self._attempt(start, rows)
                except LearningFailed as error:
                    reason = str(error)
                except RayError as error:  # while building: what was lost may not be back yet
                    if not restarts:
                        raise
                    reason = str(error).strip().splitlines()[0]
                self._interrupt.check()
                if restarts >= most:
                    raise RunFailed(
                        f"{reason}; learning was restarted {restarts} times, and "
                        f"run.max_learner_restarts is {most}; {self._advice()}"
                    )
                restarts += 1
                self.display.event(f"warning: {reason}; restart {restarts} of at most {most}")
                start, rows = self._begin_again(start)

    def _attempt(self, start: Any, rows: list[dict[str, Any]]) -> Outcome:
        algorithm, since = None, None
        try:
            with self._interrupt.at_once():  # nothing is trained yet that could be lost
                self._interrupt.check()
                algorithm = self._build()
                self._watchdog.watch(algorithm)
                with self._watchdog.during("restoring"):
                    self._prepare(algorithm, start)
            callback = next(c for c in algorithm.callbacks if isinstance(c, CurriculumCallback))
            self._keeper = CheckpointKeeper(
                *(self.settings, algorithm, callback, self.folder, self.display.event),
                self._keeper,
            )
            since = time.perf_counter() - self._state.time_s
            outcome = train(
                self.settings,
                algorithm,
                callback,
                self.folder,
                self.display,
                self._trackers,
                self._state,
                rows,
                self._interrupt,
                self._watchdog,
                self._keeper,
                self._metrics,
                self._ray_since,
            )
            self._finished(algorithm)
            return outcome
        except Exception as error:
            if since is not None:  # an update that hung took its time too
                self._state.time_s = time.perf_counter() - since
            reason = _why_learning_failed(error, algorithm)
            if reason is None:
                raise
            raise LearningFailed(reason) from error
        finally:
            self._watchdog.watch(None)
            if algorithm is not None:
                stop(algorithm)

    def _advice(self) -> str:
        """What is left to do for who started the run."""
        try:
            newest_checkpoint(self.folder.checkpoints)
        except UserError:
            return "there is no checkpoint to continue from"
        return f"continue with --resume {quoted(self.folder.name)}"

    def _begin_again(self, start: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Where the next attempt starts: the newest whole checkpoint, or the very beginning.

        Env steps go back with the weights. The time that was spent was spent, and faults stay
        counted.
        """
        failed = self._state
        self._ray_since = None  # how long a resumed run takes is not told by a restart
        try:
            checkpoint, state = newest_checkpoint(self.folder.checkpoints, self.display.event)
            start = dataclasses.replace(start, checkpoint=checkpoint, state=state)
            where = f"continues from {checkpoint.name}"
        except UserError:  # none was written yet, or none is whole
            start = dataclasses.replace(start, checkpoint=None, state={})
            where = "begins anew, there is no checkpoint yet"
        self._state = RunState(**start.state)
        self._state.time_s = failed.time_s
        self._state.faults = dict(failed.faults)
        self._state.faults["learner_restarts"] = failed.faults.get("learner_restarts", 0) + 1
        self._trackers.go_back(self._state.env_steps)
        self.display.event(f"{where}, {failed.env_steps - self._state.env_steps:,} env steps back")
        try:
            # Those passed over would take the places of newer ones that are whole.
            set_aside_later(self.folder.checkpoints, self._state.iteration)
            return start, self.folder.cut_progress(self._state.finished_iterations)
        except OSError as error:
            raise RunFailed(
                f"{self.folder.progress} can't be written ({error.strerror or error}), which a "
                f"restart of learning needs; {self._advice()}"
            ) from None


def stop(algorithm: Any) -> None:
    """`algorithm.stop()`, which would wait for ever for an env runner that hangs or is nowhere."""
    for group in (algorithm.env_runner_group, algorithm.eval_env_runner_group):
        manager = actor_manager(group)
        if manager is None or not manager.num_actors():
            continue
        ended = manager.foreach_actor("stop", healthy_only=False, timeout_seconds=STOP_WITHIN_S)
        answered = {result.actor_id for result in ended}
        for runner, actor in manager.actors().items():
            if runner not in answered:
                ray.kill(actor)
    algorithm.stop()


def _why_learning_failed(error: Exception, algorithm: Any) -> str | None:
    """In words, if a new algorithm may do better; None for a bug or whatever else."""
    if isinstance(error, LearningFailed):
        return str(error)
    lost = lost_learners(algorithm)
    # Whatever RLlib stumbles over when a learner is gone: no learner to ask, an assertion, ...
    return f"{lost} of {algorithm.config.num_learners} learners died" if lost else None
