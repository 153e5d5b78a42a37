"""The training loop: `Algorithm.train()` until every stage is solved or a limit is reached.

A stage whose problems can be listed is *solved* when it is certified: every problem was played and
solved. A stage with too many problems is solved when every problem of the fixed sample is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from toolagent.checkpoints.run_files import FirstSolved, RunState
from toolagent.curriculum.callback import CURRICULUM, env_steps_of
from toolagent.curriculum.stopping import StageCertifier, TrainingClock
from toolagent.learning.faults import check_learners
from toolagent.learning.iteration import IterationMixin
from toolagent.models.base import AgentNetwork
from toolagent.phases import main_phase, phase, timed
from toolagent.rollouts.certification import SAMPLE_SIZE, StageAccuracy, certify
from toolagent.run.faults import FaultCounts
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.rows import progress_row, unfinished_row
from toolagent.run.session import Session
from toolagent.run.start import limit_reached
from toolagent.tasks import Task


@dataclass
class Outcome:
    """What a session came to."""

    state: RunState
    stopped_by: (
        str  # "solved", "env_steps", "time", "iterations", "interrupted", "taught", `PASSED`
    )
    stages: list[StageAccuracy]
    rows: list[dict[str, Any]]
    keeper: CheckpointKeeper
    network: AgentNetwork  # as it is at the end
    task: Task
    recorded: list[str] = field(default_factory=list)  # lines on the recorded episodes


PASSED = "passed"  # `stopped_by` of the first of two phases


class _Stopped(Exception):
    """Leaves `Algorithm.train()` in the middle of an iteration; the argument is `stopped_by`."""


class TrainingLoop:
    """Trains one algorithm until a stop, and writes progress and checkpoints on the way.

    Signals, limits and due checkpoints act after the update under way. An iteration that is left
    in the middle has a row in the progress, of what is known of it; a resumed run finishes the
    iteration and replaces that row by the row of the whole iteration.

    Measuring and certifying during the training are counted in `time_s` and in each rate, but not
    in `env_steps`: they take time, but nothing is learned from them.

    The state and the rows of the progress, both as far as the run has come, are changed in place.
    """

    def __init__(
        self, session: Session, keeper: CheckpointKeeper, state: RunState, rows: list[Any]
    ):
        self._session, self._keeper = session, keeper
        self._settings, self._display = session.settings, session.display
        self._algorithm, self._callback = keeper.algorithm, keeper.callback
        self._state, self._rows = state, rows
        self._clock = TrainingClock(state.time_s)
        self._faults = FaultCounts(state.faults, self._algorithm)
        self._certifier = StageCertifier(self._callback)
        # Whether another phase comes after this one, and whether this one is that other phase.
        self._hands_over = session.settings.student is not None and state.phase == 0
        self._is_student = state.phase > 0
        self._unwritten: str | None = None  # why rows of the progress wait to be written

    def run(self) -> Outcome:
        """Trains, certifies the final network and writes the last checkpoint."""
        main_phase("training")
        self._state.stopped_by = None
        algorithm = self._algorithm
        if isinstance(algorithm, IterationMixin):  # RLlib's own stop after an iteration
            algorithm.between_updates = lambda: self._between_updates(algorithm.env_steps)
        self._session.metrics.begin(algorithm)
        if self._state.iteration == 0:
            self._state.accuracy_at_start = self._callback.accuracy_at_start(algorithm)
        stopped_by = self._certify_left_over()
        while not stopped_by:
            stopped_by = self._iterate()
        return self._end(stopped_by)

    def note_time(self) -> None:
        """Brings the time in the state up to now."""
        self._state.time_s = self._clock.seconds

    def _certify_left_over(self) -> str | None:
        """Certifies what the session before had measured when a signal came."""
        if not self._state.uncertified:
            return None
        self._state.uncertified = False
        self._callback.refresh_network(self._algorithm)
        return self._why_stop(self._certify(True))

    def _iterate(self) -> str | None:
        """One iteration; why training stops after it, or None."""
        state = self._state
        try:
            with phase("iteration"):
                result = self._algorithm.train()
        except _Stopped as stop:
            row = unfinished_row(self._callback, state, self._rows)
            self._add_row(row | self._faults.fields())
            return str(stop)
        check_learners(self._algorithm)  # RLlib's own algorithms train on without them
        state.iteration, state.under_way = int(self._algorithm.iteration), False
        state.env_steps = max(env_steps_of(result), state.env_steps)
        self.note_time()
        self._faults.add_iteration(result)
        solved = self._certify(result[CURRICULUM]["measured"])
        self.note_time()
        self._report(result)
        stopped_by = self._why_stop(solved)
        if self._keeper.due and not stopped_by:
            self._write_checkpoint()
            stopped_by = self._why_stop(solved)  # writing may have taken long
        return stopped_by

    def _between_updates(self, env_steps: int) -> None:
        state = self._state
        state.iteration, state.under_way = int(self._algorithm.iteration) + 1, True
        state.env_steps = max(env_steps, state.env_steps)
        self.note_time()
        stopped_by = self._why_stop(False)
        if stopped_by:
            raise _Stopped(stopped_by)
        if self._keeper.due:
            self._write_checkpoint()

    def _end(self, stopped_by: str) -> Outcome:
        interrupt, callback = self._session.interrupt, self._callback
        self._state.stopped_by = stopped_by
        if stopped_by == PASSED:  # the next phase's agent is what will be certified
            network = callback.refresh_network(self._algorithm)
            self._keeper.write(self._state)
            return Outcome(
                *(self._state, stopped_by, callback.measured, self._rows),
                *(self._keeper, network, callback.task),
            )
        if stopped_by == "interrupted":  # first of all: the machine may be about to go
            self._keeper.write(self._state)
        network = callback.refresh_network(self._algorithm)
        self._display.doing("certifying")
        try:
            with interrupt.at_once(), self._session.watchdog.during("certifying"):
                if stopped_by != "interrupted":
                    interrupt.check()  # there may have been a signal since it was looked for
                known = self._certifier.found if stopped_by == "solved" else None
                stages = certified = certify(network, callback.task, known=known)
        except KeyboardInterrupt:
            if stopped_by == "interrupted":  # the second one
                raise
            self._state.stopped_by = stopped_by = "interrupted"
            stages, certified = callback.measured, ()
        self._keeper.write(self._state, certified)
        return Outcome(
            self._state, stopped_by, stages, self._rows, self._keeper, network, callback.task
        )

    def _why_stop(self, solved: bool) -> str | None:
        """Why training stops now, or None; solved: because every stage is."""
        if solved:
            return PASSED if self._hands_over else "solved"
        if self._session.interrupt.requested:
            return "interrupted"
        limit = limit_reached(self._settings, self._state)
        if limit is None and self._hands_over and self._callback.passed:
            return PASSED
        if limit is None and getattr(self._algorithm, "finished", False):
            return "taught"
        return limit

    @timed("certify")
    def _certify(self, measured: bool) -> bool:
        """Certifies what was measured anew, if anything was; whether the run is to end because all
        stages are solved."""
        if not measured:
            return False
        interrupt = self._session.interrupt
        try:
            with interrupt.at_once(), self._session.watchdog.during("certifying"):
                interrupt.check()  # there may have been a signal since it was looked for
                return self._note_solved()
        except KeyboardInterrupt:  # of `interrupt`; the loop ends with it
            self._state.uncertified = True
            return False

    def _note_solved(self) -> bool:
        """Certifies stages whose measurement was faultless, where that tells something new: a stage
        that was never solved before or, if that ends the run, that all are now.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        for stage in sorted(self._certifier.candidates):
            if str(stage) in self._state.first_solved:
                continue
            if self._certifier.is_solved(stage):
                self._note_first_solved(stage)
        # A student goes on: what it can do beyond these stages comes last.
        ends = self._settings.run.stop_when_solved and not self._is_student
        return ends and self._certifier.all_solved()

    def _note_first_solved(self, stage: int) -> None:
        env_steps, time_s = self._state.env_steps, self._state.time_s
        self._state.first_solved[str(stage)] = FirstSolved(env_steps, time_s)
        total = self._callback.task.num_problems(stage)
        solved = (
            f"solved, all {SAMPLE_SIZE:,} problems of the sample"
            if total is None
            else f"certified, all {total:,} problems solved"
        )
        self._display.event(f"{env_steps:>9,} env steps: stage {stage} {solved} ({time_s:.1f} s)")

    @timed("rows and display")
    def _report(self, result: dict[str, Any]) -> None:
        """Shows and writes what a whole iteration came to."""
        session, state = self._session, self._state
        row = progress_row(result, state, self._rows) | self._faults.fields()
        if session.ray_since is not None:
            seconds, session.ray_since = time.perf_counter() - session.ray_since, None
            self._display.event(f"trains again, {seconds:.1f} s after Ray was up")
        news = getattr(self._algorithm, "news", [])
        if self._hands_over and self._callback.passed:
            news = [f"the student begins: {self._callback.passed}"]
        if news:
            event = row["curriculum_event"]
            row["curriculum_event"] = "; ".join([str(event), *news] if event else news)
            news.clear()
        if row["curriculum_event"]:
            self._display.event(f"{state.env_steps:>9,} env steps: {row['curriculum_event']}")
        self._add_row(row)
        session.metrics.note(row, len(state.first_solved), self._algorithm)
        session.trackers.log(row, result)

    def _add_row(self, row: dict[str, Any]) -> None:
        """Adds a row to the progress and shows it."""
        self._rows.append(row)
        before, self._unwritten = self._unwritten, self._session.folder.append_progress(row)
        if self._unwritten and not before:
            self._display.event(f"warning: progress.jsonl waits to be written ({self._unwritten})")
        self._display.update(row, self._state.first_solved)

    def _write_checkpoint(self) -> None:
        before = self._keeper.seconds
        if self._keeper.write(self._state):
            self._session.metrics.note_checkpoint(self._keeper.seconds - before)
        else:
            self._faults.add("failed_checkpoints")
