"""Which of a run's limits is reached."""

from __future__ import annotations

from toolagent.checkpoints.run_files import RunState
from toolagent.config import Settings
from toolagent.curriculum.stopping import first_limit_reached


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
