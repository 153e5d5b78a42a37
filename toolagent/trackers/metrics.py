"""The figures of an iteration under the names that people expect in trackers.

`charts/` and `losses/` are CleanRL's names; `ray/tune/...` are those that Ray Tune's own
TensorBoard logger gives to RLlib's results (`run.rllib_figures`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from toolagent.figures import FIGURES

RLLIB_PREFIX = "ray/tune/"

# Parts of a result that say nothing about learning, or are among the tags above.
_LEFT_OUT = ("config", "curriculum", "pid", "done", "timestamp", "time_since_restore")


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one row of `progress.jsonl` by tag; a figure that is not there has none.

    The tag of a column that is in a group, such as 'accuracy/stage_0', is its name.
    """
    found = {figure.tag: row.get(figure.name) for figure in FIGURES if figure.tag}
    found |= {name: value for name, value in row.items() if "/" in name}
    return {tag: float(value) for tag, value in found.items() if value is not None}


def rllib_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Every finite number in RLlib's result, by its path: `ray/tune/env_runners/num_episodes`."""
    found: dict[str, float] = {}

    def walk(mapping: Mapping[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}/")
            elif isinstance(value, Real) and math.isfinite(value):
                found[f"{prefix}{key}"] = float(value)

    walk({key: result[key] for key in result if key not in _LEFT_OUT}, RLLIB_PREFIX)
    return found


def flat_parameters(document: Mapping[str, Any]) -> dict[str, str]:
    """A configuration's values by their dotted paths, as `--set` names them."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        children: Any = ()
        if isinstance(value, Mapping):
            children = value.items()
        elif isinstance(value, list) and any(isinstance(child, Mapping | list) for child in value):
            children = enumerate(value)
        if not children:
            found[path] = str(value)
        for key, child in children:
            walk(child, f"{path}.{key}" if path else str(key))

    walk(document, "")
    return found


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """What a run came to, from its `summary.json`, by tag."""
    found = {
        "summary/env_steps": summary["env_steps"],
        "summary/wall_time_s": summary["wall_time_s"],
        "summary/env_steps_per_s": summary["env_steps_per_s"],
    }
    for stage in summary["stages"]:
        found[f"summary/accuracy_stage_{stage['stage']}"] = stage["accuracy"]
    return {tag: float(value) for tag, value in found.items()}
