"""The end of a search: which trial was best, `summary.json`, the table, the pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from toolagent import cli
from toolagent.config import to_yaml
from toolagent.errors import quoted
from toolagent.files import write_atomically
from toolagent.tune.folder import SearchFolder
from toolagent.tune.plots import plot_learning_curves, plot_settings
from toolagent.tune.rows import FAILED, FIGURES, TrialRow, ranking, seen_from, trial_table
from toolagent.tune.search import Search, trial_settings
from toolagent.tune.space import value_text
from toolagent.tune.trial import CERTIFIED


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
        for function, path in (
            ("plot_parallel_coordinate", folder.parallel_coordinates),
            ("plot_param_importances", folder.importance),
        ):
            note = plot_settings(function, search, ranked, path)
            if note:
                notes.append(f"no {path.name}: {note}")
    write_atomically(folder.summary, (json.dumps(summary, indent=2) + "\n").encode())
    return notes


def best_config(search: Search, best: TrialRow) -> str:
    """The base with the best trial's values: a configuration for `run --config`."""
    lines = [f"# The best of {search.num_trials} trials of a search: {best.outcome}."]
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
        cli.print_table(console, trial_table(search, [(row, row.status) for row in ranked]))
    lines = []
    for row in rows:
        if row.status == FAILED:
            lines.append(f"\ntrial {row.number} failed: {row.error}")
            lines.append(f"  {_settings_text(row)}; see {row.folder}")
    lines += notes
    if ranked:
        best = ranked[0]
        lines.append(f"\nbest: trial {best.number}, {best.outcome}\n  {_settings_text(best)}")
        lines.append(f"\nnext: python -m toolagent.run --config {quoted(folder.best_config)}")
        if best.checkpoint is not None:
            checkpoint = quoted(seen_from(Path(), best.checkpoint))
            settings = trial_settings(search.base_yaml, best.settings)
            network = settings.written("rl_module", "model_config").get("network", "")
            flags = cli.code_flags(settings.task, network)
            lines.append(f"      python -m toolagent.evaluate {checkpoint}{flags}")
    for line in lines:
        console.print(line, soft_wrap=True)


def _csv(search: Search, rows: list[TrialRow]) -> str:
    text = io.StringIO()
    figures = ("certified", *FIGURES)
    columns = ["trial", "status", *search.space, *figures, "error"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        settings = {
            key: value if isinstance(value, (int, float, str)) else json.dumps(value)
            for key, value in row.settings.items()
        }
        found = {name: row.metrics[name] for name in figures if name in row.metrics}
        entry = {"trial": row.number, "status": row.status, "error": row.error}
        writer.writerow(entry | settings | found)
    return text.getvalue()


def _settings_text(row: TrialRow) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in row.settings.items())
