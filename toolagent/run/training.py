"""The training loop: `Algorithm.train()` until every stage is solved or a stop is reached.

A stage whose problems can be listed is *solved* when it is certified, so when every problem there
is was played and is right; a stage with too many, when all problems of the fixed sample are.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli.interrupt import Interrupt
from toolagent.config import Settings
from toolagent.curriculum.callback import CURRICULUM, CurriculumCallback, env_steps_of
from toolagent.learning.faults import check_learners
from toolagent.rollouts.certification import SAMPLE_SIZE, StageAccuracy, certify, is_solved
from toolagent.run.display import Display
from toolagent.run.faults import FaultCounts
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.watchdog import Watchdog
from toolagent.tasks import Task
from toolagent.trackers import Trackers
from toolagent.trackers.prometheus import RunMetrics

_PIPELINE_FIELDS = (
    "policy_age_mean",
    "policy_age_max",
    "learner_idle_share",
    "sampler_idle_share",
    "dropped_episodes_lifetime",
    "lost_requests_lifetime",
)
# What it is called here: what this pipeline's and RLlib's own learners call it.
_LEARNER_FIELDS = {
    "imitation_loss": ("imitation_loss",),
    "approximate_kl": ("approx_kl",),
    "clipped_share": ("clipfrac",),
    "explained_variance": ("vf_explained_var",),
    "learning_rate": ("default_optimizer_learning_rate",),
    "gradient_norm": ("gradients_default_optimizer_global_norm",),
}


@dataclass
class RunState:
    """Where a run stands: plain values, in every checkpoint."""

    iteration: int = 0
    env_steps: int = 0
    time_s: float = 0.0  # of training, over all sessions of a resumed run
    first_solved: dict[str, dict[str, float]] = field(default_factory=dict)  # by stage
    faults: dict[str, int] = field(default_factory=dict)  # `session.faults`
    stopped_by: str | None = None  # as in `Outcome`, in the last checkpoint of a session

    @property
    def sound(self) -> bool:
        """Whether it can be one that a checkpoint was written with: it may come from a file."""
        return (
            _is_count(self.iteration)
            and _is_count(self.env_steps)
            and _is_time(self.time_s)
            and isinstance(self.first_solved, dict)
            and all(
                isinstance(first, dict)
                and first.keys() == {"env_steps", "time_s"}
                and _is_count(first["env_steps"])
                and _is_time(first["time_s"])
                for first in self.first_solved.values()
            )
            and isinstance(self.faults, dict)
            and all(_is_count(number) for number in self.faults.values())
            and isinstance(self.stopped_by, str | None)
        )


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

    Measuring and certifying are counted in `time_s` and not in `env_steps`: they are no training,
    but they take time.

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
    run = settings.run
    start = time.perf_counter() - state.time_s
    state.stopped_by = None
    unwritten = None
    faults = FaultCounts(state.faults, algorithm)
    algorithm.give_way = lambda: bool(
        interrupt.requested or (run.stop_time_s and time.perf_counter() - start >= run.stop_time_s)
    )
    metrics.begin(algorithm)
    while True:
        result = algorithm.train()
        check_learners(algorithm)  # of stock algorithms too, which go on without
        state.iteration = int(algorithm.iteration)
        before, state.env_steps = state.env_steps, max(env_steps_of(result), state.env_steps)
        state.time_s = time.perf_counter() - start
        faults.add_iteration(result)
        row = _row(result, state, rows, before) | faults.fields()
        with watchdog.during("measuring and certifying"):
            solved = _note_solved(settings, callback, state, row, display)
        state.time_s = row["time_s"] = time.perf_counter() - start
        rows.append(row)
        before_this, unwritten = unwritten, folder.append_progress(row)
        if unwritten and not before_this:
            display.event(f"warning: progress.jsonl waits to be written ({unwritten})")
        metrics.note(row, len(state.first_solved), algorithm)
        trackers.log(row, result)
        if ray_since is not None:
            seconds, ray_since = time.perf_counter() - ray_since, None
            display.event(f"trains again, {seconds:.1f} s after Ray was up")
        if row["curriculum_event"]:
            display.event(f"{state.env_steps:>9,} env steps: {row['curriculum_event']}")
        display.update(row)
        stopped_by = _stop(settings, state, solved, interrupt)
        if stopped_by:
            break
        if keeper.due:
            before_it = keeper.seconds
            if keeper.write(state):
                metrics.note_checkpoint(keeper.seconds - before_it)
            else:
                faults.add("failed_checkpoints")
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


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


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
        ("iterations", run.stop_iterations, state.iteration),
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
        "iterations": f"it has made {state.iteration:,} iterations; raise run.stop_iterations",
    }.get(_limit_reached(settings, state) or "")


def _note_solved(
    settings: Settings,
    callback: CurriculumCallback,
    state: RunState,
    row: dict[str, Any],
    display: Display,
) -> bool:
    """Certifies stages whose measurement was faultless; True if all stages of the curriculum are
    solved."""
    if not row["measured"]:
        return False
    network, task = callback.network, callback.task
    assert network is not None
    faultless = {entry.stage for entry in callback.measured if entry.faultless}
    wanted = {level.stage for level in settings.curriculum.levels}
    all_faultless = wanted <= faultless
    solved = set()
    for stage in sorted(faultless):
        first = str(stage) not in state.first_solved
        # A stage once solved is played again only when that could end the run.
        if (first or all_faultless) and is_solved(network, task, stage):
            solved.add(stage)
            if first:
                state.first_solved[str(stage)] = {
                    "env_steps": state.env_steps,
                    "time_s": state.time_s,
                }
                display.event(
                    f"{state.env_steps:>9,} env steps: stage {stage} {_in_words(task, stage)} "
                    f"({state.time_s:.1f} s)"
                )
    return wanted <= solved


def _in_words(task: Task, stage: int) -> str:
    """What it means that the stage is solved."""
    total = task.num_problems(stage)
    if total is None:
        return f"solved, all {SAMPLE_SIZE:,} problems of the sample"
    return f"certified, all {total:,} problems solved"


def _row(
    result: dict[str, Any], state: RunState, rows: list[dict[str, Any]], steps_before: int
) -> dict[str, Any]:
    """One row of `progress.jsonl`: plain numbers, None where there is none."""
    curriculum = result[CURRICULUM]
    runners = result.get(ENV_RUNNER_RESULTS, {})
    learner = result.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
    pipeline = result.get("pipeline", {})
    seconds = state.time_s - (rows[-1]["time_s"] if rows else 0.0)
    event = None
    if curriculum["reason"]:
        event = f"stage {curriculum['next_stage']} begins: {curriculum['reason']}"
    return {
        "iteration": state.iteration,
        "time_s": state.time_s,
        "env_steps": state.env_steps,
        "env_steps_per_s": (state.env_steps - steps_before) / seconds if seconds > 0 else 0.0,
        "stage": curriculum["stage"],
        "next_stage": curriculum["next_stage"],
        "curriculum_event": event,
        "measured": curriculum["measured"],
        "accuracy": curriculum["accuracy"],
        "mean_return": curriculum["mean_return"],
        "programs": curriculum["programs"] if curriculum["measured"] else {},
        "episode_return_mean": _number(runners.get("episode_return_mean")),
        "episode_len_mean": _number(runners.get("episode_len_mean")),
        "policy_loss": _number(learner.get("policy_loss")),
        "vf_loss": _number(learner.get("vf_loss")),
        "entropy": _number(learner.get("entropy")),
        **{
            name: next((_number(learner[key]) for key in keys if key in learner), None)
            for name, keys in _LEARNER_FIELDS.items()
        },
        **{name: _number(pipeline.get(name)) for name in _PIPELINE_FIELDS},
    }


def _number(value: Any) -> float | None:
    """A finite float, or None: NaN is no JSON."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)
