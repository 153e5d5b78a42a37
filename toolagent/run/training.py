"""The training loop: `Algorithm.train()` until every stage is solved or a stop is reached.

A stage whose problems can be listed is *solved* when it is certified, so when every problem there
is was played and is right; a stage with too many, when all problems of the fixed sample are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli.interrupt import Interrupt
from toolagent.config import Settings
from toolagent.curriculum.callback import CURRICULUM, CurriculumCallback, env_steps_of
from toolagent.figures import ENV_RUNNERS, FIGURES, LEARNER, PIPELINE, Figure
from toolagent.learning.faults import check_learners
from toolagent.rollouts.certification import (
    SAMPLE_SIZE,
    StageAccuracy,
    are_solved,
    certify,
    is_solved,
)
from toolagent.run.display import Display
from toolagent.run.faults import FaultCounts
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.watchdog import Watchdog
from toolagent.tasks import Task
from toolagent.trackers import Trackers
from toolagent.trackers.prometheus import RunMetrics


@dataclass
class RunState:
    """Where a run stands: plain values, in every checkpoint (`run_files.SavedRunState`)."""

    iteration: int = 0  # the latest, which may be under way
    env_steps: int = 0
    time_s: float = 0.0  # of training, over all sessions of a resumed run
    first_solved: dict[str, dict[str, float]] = field(default_factory=dict)  # by stage
    faults: dict[str, int] = field(default_factory=dict)  # `session.faults`
    stopped_by: str | None = None  # as in `Outcome`, in the last checkpoint of a session
    under_way: bool = False  # the iteration is not finished
    uncertified: bool = False  # a signal ended certifying what the iteration had measured

    @property
    def finished_iterations(self) -> int:
        """Those that have a row in a progress that is continued."""
        return self.iteration - self.under_way


@dataclass
class Outcome:
    """What the loop came to."""

    state: RunState
    stopped_by: str  # "solved", "env_steps", "time", "iterations", "interrupted"
    stages: list[StageAccuracy]
    rows: list[dict[str, Any]]
    keeper: CheckpointKeeper
    network: Any  # as it is at the end
    task: Task


class _Stopped(Exception):
    """Leaves `Algorithm.train()` in the middle of an iteration; the argument is `stopped_by`."""


def train(
    settings: Settings,
    algorithm: Any,
    callback: CurriculumCallback,
    folder: RunFolder,
    display: Display,
    trackers: Trackers,
    state: RunState,
    rows: list[dict[str, Any]],
    interrupt: Interrupt,
    watchdog: Watchdog,
    keeper: CheckpointKeeper,
    metrics: RunMetrics,
    ray_since: float | None = None,
) -> Outcome:
    """Trains until a stop, writing progress and checkpoints on the way.

    Signals, limits and due checkpoints act after the update under way. An iteration that is left
    in the middle has a row in the progress, of what is known of it; a run that is resumed finishes
    the iteration and puts the whole one's row there, as if it had never stopped.

    Measuring and certifying during the training are counted in `time_s` and in each rate, and not
    in `env_steps`: they are no training, but they take time.

    Args:
        settings: what was asked for.
        algorithm: built or restored.
        callback: the algorithm's own curriculum callback.
        folder: to write to.
        display: to show.
        trackers: told of every iteration.
        state: a new run's, or a restored one; changed.
        rows: of the progress so far; added to.
        interrupt: ends training, and then certifying.
        watchdog: looking after the algorithm.
        keeper: of this algorithm's checkpoints.
        metrics: published for as long as the session lasts.
        ray_since: `perf_counter` when Ray was up, for a resumed run, which then says how long it
            took to train again.
    """
    start = time.perf_counter() - state.time_s
    state.stopped_by = None
    unwritten = None
    faults = FaultCounts(state.faults, algorithm)
    failed: dict[int, Any] = {}  # of `is_solved`

    def certify_measured(measured: bool) -> bool:
        try:
            with watchdog.during("certifying"):
                return _note_solved(settings, callback, state, measured, display, failed, interrupt)
        except KeyboardInterrupt:  # of `interrupt`; the loop ends with it
            state.uncertified = True
            return False

    def add_row(row: dict[str, Any]) -> None:
        nonlocal unwritten
        rows.append(row)
        before, unwritten = unwritten, folder.append_progress(row)
        if unwritten and not before:
            display.event(f"warning: progress.jsonl waits to be written ({unwritten})")
        display.update(row)

    def write_checkpoint() -> None:
        before = keeper.seconds
        if keeper.write(state):
            metrics.note_checkpoint(keeper.seconds - before)
        else:
            faults.add("failed_checkpoints")

    def between_updates() -> None:
        state.iteration, state.under_way = int(algorithm.iteration) + 1, True
        state.env_steps = max(algorithm.env_steps, state.env_steps)
        state.time_s = time.perf_counter() - start
        stopped_by = _stop(settings, state, False, interrupt)
        if stopped_by:
            raise _Stopped(stopped_by)
        if keeper.due:
            write_checkpoint()

    algorithm.between_updates = between_updates
    metrics.begin(algorithm)
    stopped_by = None
    if state.uncertified:  # the measurement that the checkpoint ended with
        state.uncertified = False
        callback.refresh_network(algorithm)
        stopped_by = _stop(settings, state, certify_measured(True), interrupt)
    while not stopped_by:
        try:
            result = algorithm.train()
        except _Stopped as stop:
            stopped_by = str(stop)
            add_row(_unfinished_row(callback, state, rows) | faults.fields())
            break
        check_learners(algorithm)  # of stock algorithms too, which go on without
        state.iteration, state.under_way = int(algorithm.iteration), False
        state.env_steps = max(env_steps_of(result), state.env_steps)
        state.time_s = time.perf_counter() - start
        faults.add_iteration(result)
        solved = certify_measured(result[CURRICULUM]["measured"])
        state.time_s = time.perf_counter() - start
        row = _row(result, state, rows) | faults.fields()
        if ray_since is not None:
            seconds, ray_since = time.perf_counter() - ray_since, None
            display.event(f"trains again, {seconds:.1f} s after Ray was up")
        if row["curriculum_event"]:
            display.event(f"{state.env_steps:>9,} env steps: {row['curriculum_event']}")
        add_row(row)
        metrics.note(row, len(state.first_solved), algorithm)
        trackers.log(row, result)
        stopped_by = _stop(settings, state, solved, interrupt)
        if keeper.due and not stopped_by:
            write_checkpoint()
            stopped_by = _stop(settings, state, solved, interrupt)  # it may have taken long
    state.stopped_by = stopped_by
    if stopped_by == "interrupted":  # first of all: the machine may be about to go
        keeper.write(state)
    network = callback.refresh_network(algorithm)
    try:
        with interrupt.at_once(), watchdog.during("certifying"):
            if stopped_by != "interrupted":
                interrupt.check()  # there may have been a signal since it was looked for
            stages = certified = certify(network, callback.task)
    except KeyboardInterrupt:
        if stopped_by == "interrupted":  # the second one
            raise
        state.stopped_by = stopped_by = "interrupted"
        stages, certified = callback.measured, ()
    keeper.write(state, certified)
    return Outcome(state, stopped_by, stages, rows, keeper, network, callback.task)


def _stop(settings: Settings, state: RunState, solved: bool, interrupt: Interrupt) -> str | None:
    if solved and settings.run.stop_when_solved:
        return "solved"
    if interrupt.requested:
        return "interrupted"
    return _limit_reached(settings, state)


def _limit_reached(settings: Settings, state: RunState) -> str | None:
    run = settings.run
    for name, limit, value in (
        ("env_steps", run.stop_env_steps, state.env_steps),
        ("time", run.stop_time_s, state.time_s),
        ("iterations", run.stop_iterations, state.finished_iterations),
    ):
        if limit is not None and value >= limit:
            return name
    return None


def nothing_left(settings: Settings, state: RunState) -> str | None:
    """Why a run that stands there has nothing left to do under these settings, and what would give
    it something; None if it has."""
    if state.stopped_by == "solved" and settings.run.stop_when_solved:
        advice = "--set run.stop_when_solved=false"
        return f"every stage of the curriculum is solved; to train on, add {advice}"
    return {
        "env_steps": f"it has made {state.env_steps:,} env steps; raise --stop-env-steps",
        "time": f"it has trained for {state.time_s:.0f} s; raise --stop-time-s",
        "iterations": (
            f"it has made {state.finished_iterations:,} iterations; raise run.stop_iterations"
        ),
    }.get(_limit_reached(settings, state) or "")


def _note_solved(
    settings: Settings,
    callback: CurriculumCallback,
    state: RunState,
    measured: bool,
    display: Display,
    failed: dict[int, Any],
    interrupt: Interrupt,
) -> bool:
    """Certifies stages whose measurement was faultless, where that tells something new: a stage
    that was never solved before or, if that ends the run, that all are now.

    Returns:
        Whether the run is to end because all stages of the curriculum are solved.

    Raises:
        KeyboardInterrupt: a signal came.
    """
    if not measured:
        return False
    network, task = callback.network, callback.task
    assert network is not None
    faultless = {entry.stage for entry in callback.measured if entry.faultless}
    wanted = {level.stage for level in settings.curriculum.levels}
    once_solved = {stage for stage in faultless if str(stage) in state.first_solved}
    now_solved = set()
    for stage in sorted(faultless - once_solved):
        with interrupt.at_once():
            interrupt.check()  # there may have been a signal since it was looked for
            solved = is_solved(network, task, stage, failed)
        if solved:
            now_solved.add(stage)
            state.first_solved[str(stage)] = {
                "env_steps": state.env_steps,
                "time_s": state.time_s,
            }
            display.event(
                f"{state.env_steps:>9,} env steps: stage {stage} {_in_words(task, stage)} "
                f"({state.time_s:.1f} s)"
            )
    if not settings.run.stop_when_solved or not wanted <= now_solved | once_solved:
        return False
    with interrupt.at_once():
        interrupt.check()
        return are_solved(network, task, wanted - now_solved, failed)


def _in_words(task: Task, stage: int) -> str:
    """What it means that the stage is solved."""
    total = task.num_problems(stage)
    if total is None:
        return f"solved, all {SAMPLE_SIZE:,} problems of the sample"
    return f"certified, all {total:,} problems solved"


def _row(result: dict[str, Any], state: RunState, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of `progress.jsonl`: plain numbers, None where there is none."""
    curriculum = result[CURRICULUM]
    sources = {
        ENV_RUNNERS: result.get(ENV_RUNNER_RESULTS, {}),
        LEARNER: result.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {}),
        PIPELINE: result.get("pipeline", {}),
    }
    last = rows[-1] if rows else {"time_s": 0.0, "env_steps": 0}
    seconds = state.time_s - last["time_s"]
    event = None
    if curriculum["reason"]:
        event = f"stage {curriculum['next_stage']} begins: {curriculum['reason']}"
    return {
        "iteration": state.iteration,
        "time_s": state.time_s,
        "env_steps": state.env_steps,
        "env_steps_per_s": (state.env_steps - last["env_steps"]) / seconds if seconds > 0 else 0.0,
        "stage": curriculum["stage"],
        "next_stage": curriculum["next_stage"],
        "curriculum_event": event,
        "measured": curriculum["measured"],
        "accuracy": curriculum["accuracy"],
        "mean_return": curriculum["mean_return"],
        "programs": curriculum["programs"] if curriculum["measured"] else {},
        **{
            figure.name: _number(_figure(figure, sources[figure.source]))
            for figure in FIGURES
            if figure.source in sources
        },
    }


def _unfinished_row(
    callback: CurriculumCallback, state: RunState, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The row of an iteration that was left in the middle: without what its end tells."""
    figures = {
        "stage": callback.stage,
        "next_stage": callback.stage,
        "reason": None,
        "measured": False,
        "accuracy": {str(stage.stage): stage.accuracy for stage in callback.measured},
        "mean_return": {str(stage.stage): stage.mean_return for stage in callback.measured},
    }
    return _row({CURRICULUM: figures}, state, rows)


def _figure(figure: Figure, source: Mapping[str, Any]) -> Any:
    keys = figure.keys or (figure.name,)
    return next((source[key] for key in keys if key in source), None)


def _number(value: Any) -> float | None:
    """A finite float, or None: NaN is no JSON."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)
