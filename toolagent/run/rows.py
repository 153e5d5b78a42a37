"""The rows of `progress.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils import metrics
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, LEARNER_RESULTS
from ray.tune import result as tune

from toolagent.checkpoints.run_files import RunState
from toolagent.curriculum.callback import CURRICULUM, CurriculumCallback
from toolagent.figures import ENV_RUNNERS, FIGURES, LEARNER, PIPELINE

ALGORITHM = "algorithm"  # columns of what callbacks of the algorithm log begin with it
# The names that RLlib, Tune and the pipeline give to what they report: the constants of their
# public modules, and those that are no constants. Every other name in a result is the user's.
_REPORTED = frozenset(
    name
    for module in (metrics, tune)
    for value in vars(module).values()
    for name in (value if isinstance(value, tuple) else (value,))
    if isinstance(name, str)
) | {
    *("agent_episode_return_mean", "module_episode_return_mean", "num_env_step_failures"),
    *("num_healthy_workers", "num_remote_worker_restarts", "num_env_runners_dropped_lifetime"),
    "actor_manager_num_outstanding_async_reqs",
    *("env_runner_group", "perf", CURRICULUM, PIPELINE),
}


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
        **({"accuracy_at_start": state.accuracy_at_start} if state.iteration == 1 else {}),
        "programs": curriculum["programs"] if curriculum["measured"] else {},
        **{
            figure.name: _number(sources[figure.source].get(figure.key or figure.name))
            for figure in FIGURES
            if figure.source in sources
        },
        **_stages(curriculum),
        **_evaluation(result),
        **_logged(result),
    }


def _stages(curriculum: dict[str, Any]) -> dict[str, float | None]:
    """What was measured in this iteration, a column for each stage: 'accuracy/stage_0'; {} in an
    iteration that measured nothing."""
    if not curriculum["measured"]:
        return {}
    columns = {f"accuracy/stage_{stage}": share for stage, share in curriculum["accuracy"].items()}
    for stage, programs in curriculum["programs"].items():
        columns[f"programs/stage_{stage}_share_of_most_frequent"] = programs["share"]
        columns[f"programs/stage_{stage}_distinct"] = programs["distinct"]
        columns[f"programs/stage_{stage}_solved_length"] = programs["solved_length"]
    return {name: _number(value) for name, value in columns.items()}


def _evaluation(result: dict[str, Any]) -> dict[str, float | None]:
    """What RLlib's own evaluation says of its episodes, a column each: 'evaluation/num_episodes',
    'evaluation/episode_return_mean' and so on; {} in an iteration without one."""
    played = result.get(EVALUATION_RESULTS, {}).get(ENV_RUNNER_RESULTS, {})
    return {
        f"{EVALUATION_RESULTS}/{name}": _number(value)
        for name, value in played.items()
        if (name.startswith("episode_") or name == "num_episodes") and isinstance(value, Real)
    }


def _logged(result: dict[str, Any]) -> dict[str, float | None]:
    """What the user's callbacks logged to a MetricsLogger or put into the result, a column each:
    'env_runners/NAME', 'evaluation/NAME' (by env runners that evaluate) and 'algorithm/NAME'; of
    nested names 'env_runners/NAME/NAME'. What is no single number is left out."""
    evaluation = result.get(EVALUATION_RESULTS, {})
    places = {
        ENV_RUNNER_RESULTS: result.get(ENV_RUNNER_RESULTS, {}),
        EVALUATION_RESULTS: evaluation | evaluation.get(ENV_RUNNER_RESULTS, {}),
        ALGORITHM: result,
    }
    return {
        f"{place}/{path}": _number(value)
        for place, reported in places.items()
        for name in reported.keys() - _REPORTED
        if str(name).removesuffix("_throughput") not in _REPORTED
        for path, value in _leaves(name, reported[name])
        if isinstance(value, Real)
    }


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is not a mapping in a nested one, with its path: ('programs/distinct', 3)."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{path}/{name}", inner)


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
