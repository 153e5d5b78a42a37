"""The end of a search: which trial was best, `summary.json`, the table, the pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from toolagent import cli
from toolagent.config import to_yaml
from toolagent.errors import quoted
from toolagent.files import write_atomically
from toolagent.tune.folder import SearchFolder
from toolagent.tune.plots import plot_importance, plot_learning_curves, plot_parallel
from toolagent.tune.progress import figure_cells, outcome_text
from toolagent.tune.rows import FAILED, TrialRow, ranking, seen_from
from toolagent.tune.search import ACCURACY, Search, trial_settings
from toolagent.tune.space import short_names, value_text
from toolagent.tune.trial import CERTIFIED, SCORE


def summarize(
    search: Search,
    rows: list[TrialRow],
    folder: SearchFolder,
    stopped_by: str,
    wall_time_s: float,
) -> dict[str, Any]:
    """`summary.json`."""
    settings = search.settings
    ranked = ranking(rows)
    best = None
    if ranked:
        best = ranked[0].record(folder) | {"config": folder.best_config.name}
    return {
        "task": search.base.task,
        "algorithm": search.base.algorithm,
        "search": settings.search,
        "scheduler": settings.scheduler,
        "objective": settings.objective,
        "num_trials": search.num_trials,
        "stopped_by": stopped_by,
        "wall_time_s": wall_time_s,
        "certified": sum(row.status == CERTIFIED for row in rows),
        "failed": sum(row.status == FAILED for row in rows),
        "best": best,
        "trials": [row.record(folder) for row in rows],
    }


def write_report(
    search: Search, rows: list[TrialRow], folder: SearchFolder, summary: dict[str, Any]
) -> list[str]:
    """Writes every file of the report; returns what could not be drawn, a line each."""
    write_atomically(folder.table, _csv(search, rows).encode())
    ranked = ranking(rows)
    notes = []
    if ranked:
        write_atomically(folder.best_config, best_config(search, ranked[0]).encode())
        plot_learning_curves(search, ranked, folder.learning_curves)
        for plot, path in (
            (plot_parallel, folder.parallel_coordinates),
            (plot_importance, folder.importance),
        ):
            note = plot(search, ranked, path)
            if note:
                notes.append(f"no {path.name}: {note}")
    write_atomically(folder.summary, (json.dumps(summary, indent=2) + "\n").encode())
    return notes


def best_config(search: Search, best: TrialRow) -> str:
    """The base with the best trial's values: a configuration for `run --config`."""
    lines = [f"# The best of {search.num_trials} trials of a search: {outcome_text(best.metrics)}."]
    lines += [f"#   {key}: {value_text(value)}" for key, value in best.settings.items()]
    settings = trial_settings(search.base_yaml, best.settings)
    return "\n".join(lines) + "\n" + to_yaml(settings)


def print_report(
    console: Console,
    search: Search,
    rows: list[TrialRow],
    folder: SearchFolder,
    summary: dict[str, Any],
    notes: list[str],
) -> None:
    """The table, the failures with their causes, the best trial, and what to do next."""
    console.print(
        f"\n{len(rows)} of {search.num_trials} trials in {summary['wall_time_s']:.1f} s, "
        f"{summary['certified']} certified, {summary['failed']} failed; "
        f"ended by: {summary['stopped_by']}\n"
    )
    ranked = ranking(rows)
    if ranked:
        cli.print_table(console, _table(search, ranked))
    for row in rows:
        if row.status == FAILED:
            console.print(f"\ntrial {row.number} failed: {row.error}", soft_wrap=True)
            console.print(f"  {_settings_text(row.settings)}; see {row.folder}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)
    if not ranked:
        return
    best = ranked[0]
    console.print(
        f"\nbest: trial {best.number}, {outcome_text(best.metrics)}\n"
        f"  {_settings_text(best.settings)}\n"
        f"\nnext: python -m toolagent.run --config {quoted(folder.best_config)}",
        soft_wrap=True,
    )
    if best.checkpoint is not None:
        console.print(
            f"      python -m toolagent.evaluate {quoted(_from_here(best.checkpoint))}",
            soft_wrap=True,
        )


def _table(search: Search, ranked: list[TrialRow]) -> Table:
    names = short_names(list(search.space))
    figures = ["score", "stage", "accuracy", "env steps", "seconds"]
    if search.settings.objective == ACCURACY:
        figures.remove("score")
    table = cli.table("trial", *names.values(), *figures, "ended", right=figures)
    for row in ranked:
        cells = figure_cells(row.metrics)
        if "score" in figures:
            cells = [f"{row.metrics[SCORE]:.3f}", *cells]
        values = [value_text(row.settings.get(key)) for key in names]
        table.add_row(str(row.number), *values, *cells, row.status.replace("_", " "))
    return table


def _csv(search: Search, rows: list[TrialRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("certified", "env_steps", "seconds", "accuracy", SCORE)
    writer.writerow(["trial", "status", *search.space, *figures, "error"])
    for row in rows:
        values = [_csv_value(row.settings.get(key)) for key in search.space]
        found = [row.metrics.get(name, "") for name in figures]
        writer.writerow([row.number, row.status, *values, *found, row.error or ""])
    return text.getvalue()


def _csv_value(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _settings_text(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in settings.items())


def _from_here(path: Path) -> Path:
    """The path as seen from the current folder."""
    return seen_from(Path(), path)
