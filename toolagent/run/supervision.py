"""Keeps a run going: where learning fails, a new algorithm continues from the last checkpoint."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import ray
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from rich.console import Console

from toolagent.checkpoints.run_files import RunState
from toolagent.checkpoints.training_state import (
    newest_checkpoint,
    restore_checkpoint,
    set_aside_later,
)
from toolagent.cluster.ray_internals import actor_manager, spread_env_runners
from toolagent.cluster.ray_session import quiet
from toolagent.curriculum.callback import curriculum_of
from toolagent.errors import UserError, quoted
from toolagent.learning.distillation import handover
from toolagent.learning.faults import LearningFailed, lost_learners
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.recording import finish_recording
from toolagent.run.session import Session
from toolagent.run.start import Start, load_weights
from toolagent.run.training import PASSED, Outcome, TrainingLoop

STOP_WITHIN_S = 5.0  # an env runner that has not ended its work by then is ended


class RunFailed(Exception):
    """A run that can't go on; the message is one line for the user, who may resume it."""


class Supervision:
    """Trains in one session of a run, with as many algorithms as it takes."""

    def __init__(self, session: Session):
        self._session = session
        self._state = RunState()
        self._keeper: CheckpointKeeper | None = None
        self._recorded: list[str] = []
        self._handover: dict[str, Any] = {}  # of the phase that ended

    def run(self, rows: list[dict[str, Any]]) -> Outcome:
        """Trains from the session's start to a stop.

        Args:
            rows: of the progress so far.

        Raises:
            RunFailed: learning failed more often than `run.max_learner_restarts`, or the folder
                can't be written when it is to begin again.
        """
        session, start = self._session, self._session.start
        most, restarts = session.settings.run.max_learner_restarts, 0
        with session.watchdog, session.metrics:
            self._state = copy.deepcopy(start.state)
            while True:
                try:
                    outcome = self._attempt(start, rows)
                    if outcome.stopped_by != PASSED:
                        return outcome
                    start, rows = self._hand_over(start, outcome)
                    continue
                except LearningFailed as error:
                    reason = str(error)
                except RayError as error:  # while building: what was lost may not be back yet
                    if not restarts:
                        raise
                    reason = str(error).strip().splitlines()[0]
                session.interrupt.check()
                if restarts >= most:
                    raise RunFailed(
                        f"{reason}; learning was restarted {restarts} times, and "
                        f"run.max_learner_restarts is {most}; {self._advice()}"
                    )
                restarts += 1
                session.display.event(f"warning: {reason}; restart {restarts} of at most {most}")
                start, rows = self._begin_again(start)

    def _attempt(self, start: Start, rows: list[dict[str, Any]]) -> Outcome:
        session, algorithm, loop, first = self._session, None, None, self._keeper is None
        try:
            with session.interrupt.at_once():  # nothing is trained yet that could be lost
                session.interrupt.check()
                config: Any = session.algorithm_config
                with spread_env_runners():
                    algorithm = (config.student if self._state.phase else config).build_algo()
                quiet()  # RLlib has turned its loggers on again
                session.watchdog.watch(algorithm)
                with session.watchdog.during("restoring"):
                    prepare(algorithm, start, session.console)
            self._keeper = CheckpointKeeper(
                *(session.settings, algorithm, curriculum_of(algorithm), session.folder),
                *(session.display.event, self._keeper),
            )
            if first:  # behind the start of the env runners, which it would slow down
                session.cluster.tell_of_dashboard(session.display.event)
            loop = TrainingLoop(session, self._keeper, self._state, rows)
            outcome = loop.run()
            self._recorded += finish_recording(algorithm, session.recording)
            outcome.recorded = self._recorded
            if outcome.stopped_by == PASSED:
                self._handover = handover(algorithm, outcome.network)
            return outcome
        except Exception as error:
            if loop is not None:  # an update that hung took its time too
                loop.note_time()
            reason = _why_learning_failed(error, algorithm)
            if reason is None:
                raise
            raise LearningFailed(reason) from error
        finally:
            session.watchdog.watch(None)
            if algorithm is not None:
                if session.profile is not None:
                    session.profile.collect(algorithm)
                stop(algorithm)

    def _advice(self) -> str:
        try:
            newest_checkpoint(self._session.folder.checkpoints)
        except UserError:
            return "there is no checkpoint to continue from"
        return f"continue with --resume {quoted(self._session.folder.name)}"

    def _hand_over(self, start: Start, outcome: Outcome) -> tuple[Start, list[dict[str, Any]]]:
        """Where the second phase starts: from the agent of the first."""
        self._state.phase, self._state.stopped_by = 1, None
        start = dataclasses.replace(start, policy=None, checkpoint=None, handover=self._handover)
        return start, outcome.rows

    def _begin_again(self, start: Start) -> tuple[Start, list[dict[str, Any]]]:
        """Where the next attempt starts: the newest whole checkpoint, or the very beginning.

        Env steps go back with the weights. The time that was spent was spent, and faults stay
        counted.
        """
        session, failed = self._session, self._state
        session.ray_since = None  # how long a resumed run takes is not told by a restart
        try:
            checkpoint, state = newest_checkpoint(session.folder.checkpoints, session.display.event)
            start = dataclasses.replace(start, checkpoint=checkpoint, state=state, handover=None)
            where = f"continues from {checkpoint.name}"
        except UserError:  # none was written yet, or none is whole
            start = dataclasses.replace(start, checkpoint=None, state=RunState(), handover=None)
            where = "begins anew, there is no checkpoint yet"
        self._state = copy.deepcopy(start.state)
        self._state.time_s = failed.time_s
        self._state.faults = dict(failed.faults)
        self._state.faults["learner_restarts"] = failed.faults.get("learner_restarts", 0) + 1
        session.trackers.go_back(self._state.env_steps)
        lost = failed.env_steps - self._state.env_steps
        session.display.event(f"{where}, {lost:,} env steps back")
        try:
            # Those passed over would take the places of newer ones that are whole.
            set_aside_later(session.folder.checkpoints, self._state.iteration)
            return start, session.folder.cut_progress(self._state.finished_iterations)
        except OSError as error:
            raise RunFailed(
                f"{session.folder.progress} can't be written ({error.strerror or error}), which a "
                f"restart of learning needs; {self._advice()}"
            ) from None


def prepare(algorithm: Algorithm, start: Start, console: Console) -> None:
    """Puts a new algorithm where the session starts: at a checkpoint, or at a policy's weights."""
    if start.checkpoint is not None:
        restore_checkpoint(algorithm, start.checkpoint)
        # What was under way when the checkpoint was written, and is not in it.
        if requests := getattr(algorithm, "lost_at_restore", 0):
            episodes = requests * (algorithm.config.num_envs_per_env_runner or 1)
            console.print(f"lost: {requests} requests under way, so {episodes:,} episodes")
    elif start.handover is not None:
        algorithm.set_state(start.handover)
    elif start.policy is not None:
        load_weights(algorithm, start.policy)


def stop(algorithm: Algorithm) -> None:
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


def _why_learning_failed(error: Exception, algorithm: Algorithm | None) -> str | None:
    """In words, if a new algorithm may do better; None for a bug or whatever else."""
    if isinstance(error, LearningFailed):
        return str(error)
    lost = lost_learners(algorithm)
    # Whatever RLlib stumbles over when a learner is gone: no learner to ask, an assertion, ...
    return f"{lost} of {algorithm.config.num_learners} learners died" if lost else None
