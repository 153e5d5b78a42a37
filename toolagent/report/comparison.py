"""The tables that put groups of runs side by side: accuracies, env steps, settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from toolagent.config import documents
from toolagent.report.facts import Table, percent, stages_of
from toolagent.report.run_files import RunRecord
from toolagent.report.sources import Group, flat
from toolagent.report.statistics import CONFIDENCE, Estimate

_INTERVAL = f"{CONFIDENCE:.0%} interval"
METHOD = (
    "IQM: the interquartile mean, so the mean of the middle half of the runs, with its "
    f"{CONFIDENCE:.0%} interval by stratified bootstrap (Agarwal et al. 2021, as in rliable)."
)


def accuracy_at_end(run: RunRecord) -> dict[int, float]:
    """Share of solved problems by stage: certified, or, without that, as measured last."""
    if run.summary is not None and run.summary.stages:
        return {stage.stage: stage.solved / stage.problems for stage in run.summary.stages}
    return dict(run.measured[-1].accuracy) if run.measured else {}


def first_solved(run: RunRecord) -> dict[int, float]:
    """Env steps until a stage was first certified, by stage; infinite if it never was."""
    stages = run.summary.stages if run.summary else []
    found = {stage.stage: stage.first_solved_env_steps for stage in stages}
    return {stage: math.inf if steps is None else float(steps) for stage, steps in found.items()}


def trained_stages(run: RunRecord) -> list[int]:
    """The stages of the curriculum, as far as `config.yaml` tells them."""
    try:
        levels = documents.parse(run.config, "")["curriculum"]["levels"]
        return sorted({int(level["stage"]) for level in levels})
    except (KeyError, TypeError, ValueError):
        return stages_of([run])


def env_steps_to_solve(run: RunRecord) -> float:
    """Env steps until every stage of the curriculum was certified; infinite if not all were."""
    found = first_solved(run)
    if found:
        return max((found.get(stage, math.inf) for stage in trained_stages(run)), default=math.inf)
    solved = run.summary is not None and run.summary.stopped_by == "solved"
    return float(run.rows[-1].env_steps) if solved else math.inf


def accuracies(groups: Sequence[Group]) -> list[tuple[str, Group, Estimate]]:
    """Stage, group and accuracy, a row each; below the stages, the mean over the curriculum's
    stages. A stage that a run never measured counts as 0."""

    def score(run: RunRecord, stages: Iterable[int]) -> list[float]:
        found = accuracy_at_end(run)
        return [found.get(stage, 0.0) for stage in stages]

    stages = sorted({s for g in groups for run in g.runs for s in accuracy_at_end(run)})
    rows = [
        (str(stage), group, Estimate.of([score(run, [stage]) for run in group.runs]))
        for stage in stages
        for group in groups
        if any(stage in accuracy_at_end(run) for run in group.runs)
    ]
    if len(stages) > 1:
        for group in groups:
            trained = trained_stages(group.runs[0]) or stages
            rows.append(("mean", group, Estimate.of([score(run, trained) for run in group.runs])))
    return rows


def solving_times(groups: Sequence[Group]) -> list[tuple[str, Group, Estimate]]:
    """Stage, group and env steps until the stage was first certified, a row each; below the
    stages, until every stage of the curriculum was. Stages that no run solved are left out."""
    stages = sorted({s for g in groups for run in g.runs for s in first_solved(run)})
    rows = []
    for stage in stages:
        for group in groups:
            found = [first_solved(run).get(stage, math.inf) for run in group.runs]
            if any(map(math.isfinite, found)):
                rows.append((str(stage), group, Estimate.of([[value] for value in found])))
    rows += [
        ("all", group, Estimate.of([[env_steps_to_solve(run)] for run in group.runs]))
        for group in groups
    ]
    return rows


def accuracy_table(groups: Sequence[Group]) -> Table:
    """Accuracy at the end, over the runs of each group."""
    rows = [
        [*_head(stage, group, groups), *_cells(estimate, percent)]
        for stage, group, estimate in accuracies(groups)
    ]
    title = "Greedy accuracy at the end"
    return _table(title, groups, ["median", "IQM", _INTERVAL], rows)


def solving_table(groups: Sequence[Group]) -> Table:
    """Env steps until stages were certified, over the runs of each group."""
    rows = []
    for stage, group, estimate in solving_times(groups):
        solved = sum(map(math.isfinite, estimate.values))
        cells = [f"{solved}/{len(estimate.values)}", *_cells(estimate, _steps)]
        rows.append([*_head(stage, group, groups), *cells])
    title = "Env steps until a stage was first certified; 'all': every stage of the curriculum"
    return _table(title, groups, ["solved by", "median", "IQM", _INTERVAL], rows)


def overview(groups: Sequence[Group]) -> Table:
    """A row a run."""
    runs = [(group, run) for group in groups for run in group.runs]
    stages = sorted({stage for _, run in runs for stage in accuracy_at_end(run)})
    grouped = len(groups) > 1 and any(len(group.runs) > 1 for group in groups)
    rows = []
    for group, run in runs:
        last, found = run.rows[-1], accuracy_at_end(run)
        rows.append(
            [
                run.name,
                *[group.name] * grouped,
                str(run.seed),
                run.summary.stopped_by if run.summary else "not ended",
                f"{last.env_steps:,}",
                f"{last.time_s:,.1f}",
                f"{last.env_steps / max(last.time_s, 1e-9):,.0f}",
                *(percent(found.get(stage)) for stage in stages),
            ]
        )
    headings = ["run", *["group"] * grouped, "seed", "ended by", "env steps", "seconds", "steps/s"]
    numbers = {headings.index("seed"), *range(headings.index("env steps"), 99)}
    headings += [f"stage {stage}" for stage in stages]
    title = "The runs, and the accuracy of each stage at the end"
    return Table(title, headings, rows, {n for n in numbers if n < len(headings)})


def records(groups: Sequence[Group]) -> dict[str, Any]:
    """The figures of both tables, as JSON has them: one of several runs, by stage."""
    (group,) = groups
    return {
        "accuracy": {stage: found.record() for stage, _, found in accuracies([group])},
        "env_steps": {stage: found.record() for stage, _, found in solving_times([group])},
        "method": METHOD,
    }


def differences(groups: Sequence[Group]) -> Table:
    """What the configurations of the groups differ in, a row a key."""
    settings = [flat(group.runs[0]) for group in groups]
    keys = {key: None for found in settings for key in found}  # in their order
    rows = []
    for key in keys:
        values = [_value(found[key]) if key in found else "-" for found in settings]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return Table(
        "What their configurations differ in (seeds apart)",
        ["key", *(group.name for group in groups)],
        rows,
        range(1, len(groups) + 1),
    )


def _table(title: str, groups: Sequence[Group], figures: list[str], rows: list[Any]) -> Table:
    named = ["group"] * (len(groups) > 1)
    headings = ["stage", *named, *["runs"] * bool(named), *figures]
    numbers = range(len(headings) - len(figures) - bool(named), len(headings))
    return Table(title, headings, rows, {0, *numbers})


def _head(stage: str, group: Group, groups: Sequence[Group]) -> list[str]:
    return [stage, group.name, str(len(group.runs))] if len(groups) > 1 else [stage]


def _cells(estimate: Estimate, text: Callable[[float], str]) -> list[str]:
    """Median, interquartile mean and interval; one run has no interval."""
    low, high = text(estimate.low), text(estimate.high)
    interval = low if low == high else f"{low} to {high}"
    if len(estimate.values) == 1:
        interval = "-"
    return [text(estimate.median), text(estimate.iqm), interval]


def _steps(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
