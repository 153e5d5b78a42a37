"""Where a run stands, and which of its limits is reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolagent.config import Settings
from toolagent.curriculum.stopping import first_limit_reached


@dataclass
class RunState:
    """Where a run stands: plain values, in every checkpoint (`run_files.SavedRunState`)."""

    iteration: int = 0  # the latest, which may be under way
    env_steps: int = 0
    time_s: float = 0.0  # of training, over all sessions of a resumed run
    first_solved: dict[str, dict[str, float]] = field(default_factory=dict)  # by stage
    faults: dict[str, int] = field(default_factory=dict)  # name in `run.faults` -> count
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
