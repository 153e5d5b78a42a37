"""Where a run stands, and its rows of `progress.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

from toolagent.config import Settings
from toolagent.curriculum.callback import CURRICULUM, CurriculumCallback
from toolagent.curriculum.stopping import first_limit_reached
from toolagent.figures import ENV_RUNNERS, FIGURES, LEARNER, PIPELINE, Figure


@dataclass
class RunState:
    """Where a run stands: plain values, in every checkpoint (`run_files.SavedRunState`)."""

    iteration: int = 0  # the latest, which may be under way
    env_steps: int = 0
    time_s: float = 0.0  # of training, over all sessions of a resumed run
    first_solved: dict[str, dict[str, float]] = field(default_factory=dict)  # by stage
    faults: dict[str, int] = field(default_factory=dict)  # names of `run.faults`
    stopped_by: str | None = None  # as in `Outcome`, in the last checkpoint of a session
    under_way: bool = False  # the iteration is not finished
    uncertified: bool = False  # a signal ended certifying what the iteration had measured

    @property
    def finished_iterations(self) -> int:
        """Those that have a row in a progress that is continued."""
        return self.iteration - self.under_way


def limit_reached(settings: Settings, state: RunState) -> str | None:
    """The limit of the run that is reached, as in `stopped_by`; None if none is."""
    run = settings.run
    return first_limit_reached(
        (
            ("env_steps", run.stop_env_steps, state.env_steps),
            ("time", run.stop_time_s, state.time_s),
            ("iterations", run.stop_iterations, state.finished_iterations),
        )
    )


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
    }.get(limit_reached(settings, state) or "")


def progress_row(
    result: dict[str, Any], state: RunState, rows: list[dict[str, Any]]
) -> dict[str, Any]:
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


def unfinished_row(
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
    return progress_row({CURRICULUM: figures}, state, rows)


def _figure(figure: Figure, source: Mapping[str, Any]) -> Any:
    keys = figure.keys or (figure.name,)
    return next((source[key] for key in keys if key in source), None)


def _number(value: Any) -> float | None:
    """A finite float, or None: NaN is no JSON."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)
