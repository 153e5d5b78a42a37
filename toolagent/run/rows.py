"""The rows of `progress.jsonl`."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, LEARNER_RESULTS

from toolagent.checkpoints.run_files import RunState
from toolagent.curriculum.callback import CURRICULUM, CurriculumCallback
from toolagent.figures import ENV_RUNNERS, FIGURES, LEARNER, PIPELINE


def progress_row(
    result: dict[str, Any], state: RunState, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """One row of `progress.jsonl`: plain numbers, None where there is none."""
    curriculum = result[CURRICULUM]
    sources = {
        ENV_RUNNERS: result.get(ENV_RUNNER_RESULTS, {}),
        LEARNER: result.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {}),
        PIPELINE: result.get(PIPELINE, {}),
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
            figure.name: _number(sources[figure.source].get(figure.key or figure.name))
            for figure in FIGURES
            if figure.source in sources
        },
        **_evaluation(result),
    }


def _evaluation(result: dict[str, Any]) -> dict[str, float | None]:
    """What RLlib's own evaluation says of its episodes, a column each: 'evaluation/num_episodes',
    'evaluation/episode_return_mean' and so on; {} in an iteration without one."""
    played = result.get(EVALUATION_RESULTS, {}).get(ENV_RUNNER_RESULTS, {})
    return {
        f"{EVALUATION_RESULTS}/{name}": _number(value)
        for name, value in played.items()
        if (name.startswith("episode_") or name == "num_episodes") and isinstance(value, Real)
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


def _number(value: Any) -> float | None:
    """A finite float, or None: NaN is no JSON."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)
