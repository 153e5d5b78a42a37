"""The end of a search: which trial was best, `summary.json`, the table, the pictures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from toolagent import cli
from toolagent.config import to_yaml
from toolagent.errors import quoted
from toolagent.files import write_atomically
from toolagent.tune.folder import SearchFolder
from toolagent.tune.plots import plot_learning_curves, plot_settings
from toolagent.tune.rows import (
    BASE,
    FAILED,
    FIGURES,
    UNFINISHED,
    TrialRow,
    ranking,
    seen_from,
    trial_table,
)
from toolagent.tune.search import ACCURACY, Search, trial_settings
from toolagent.tune.space import value_text
from toolagent.tune.trial import CERTIFIED, SCORE

_FEWEST_FOR_IMPORTANCE = 10  # settings; of fewer, importance is as good as drawn by lot


def summarize(
    search: Search,
    rows: list[TrialRow],
    folder: SearchFolder,
    stopped_by: str,
    wall_time_s: float,
) -> dict[str, Any]:
    """`summary.json`."""
    settings = search.settings
    verdict = judge(search, rows)
    best = None
    if verdict is not None:
        best = verdict.row.record(folder) | {"config": folder.best_config.name}
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
        "beats_base": verdict and verdict.beats_base,
        "trials": [row.record(folder) for row in rows],
    }


def write_report(
    search: Search, rows: list[TrialRow], folder: SearchFolder, summary: dict[str, Any]
) -> list[str]:
    """Writes every file of the report; returns what could not be drawn, a line each."""
    write_atomically(folder.table, _csv(search, rows).encode())
    ranked = ranking(rows)
    verdict = judge(search, rows)
    notes = []
    if verdict is not None:
        write_atomically(folder.best_config, best_config(search, verdict.row).encode())
        plot_learning_curves(search, ranked, folder.learning_curves)
        for function, path, fewest in (
            ("plot_parallel_coordinate", folder.parallel_coordinates, 2),
            ("plot_param_importances", folder.importance, _FEWEST_FOR_IMPORTANCE),
        ):
            # Drawn anew or not there: of an earlier session, with fewer trials, it would mislead.
            path.unlink(missing_ok=True)
            told = [row for row in ranked if row.settings and conclusive(search, row)]
            if len(told) < fewest:
                how = "ended" if search.settings.objective == ACCURACY else "certified"
                note = f"settings {how}, besides the base: {len(told)}; it takes {fewest}"
            else:
                note = plot_settings(function, search, told, path)
            if note:
                notes.append(f"no {path.name}: {note}")
    write_atomically(folder.summary, (json.dumps(summary, indent=2) + "\n").encode())
    return notes


@dataclass(frozen=True)
class Verdict:
    """Which trial is recommended, and why."""

    row: TrialRow
    beats_base: bool | None  # None: nobody knows
    why: str


def judge(search: Search, rows: list[TrialRow]) -> Verdict | None:
    """The recommended trial: the best, or the base where nothing is shown to beat it; None if no
    trial has a score."""
    ranked = ranking(rows)
    if not ranked:
        return None
    best = ranked[0]
    if not search.tries_base:
        return Verdict(best, None, "the base was not tried: pbt changes the values of every trial")
    base = next((row for row in ranked if not row.settings), None)
    if base is None:
        return Verdict(best, None, "the base itself has no result to compare with")
    if best is base or best.metrics[SCORE] <= base.metrics[SCORE]:
        return Verdict(base, False, "nothing beat the base")
    if not conclusive(search, best):
        return Verdict(base, False, "nothing was certified, so nothing is known to beat the base")
    if base.status == UNFINISHED:
        return Verdict(best, None, "the base has not ended yet")
    return Verdict(best, True, "it beat the base")


def conclusive(search: Search, row: TrialRow) -> bool:
    """Whether a score says what the search asks for. An accuracy on the way to certification is
    noise on a plateau as often as not."""
    if search.settings.objective == ACCURACY:
        return bool(row.metrics["ended"])
    return bool(row.metrics["certified"])


def best_config(search: Search, best: TrialRow) -> str:
    """The base with the best trial's values: a configuration for `run --config`."""
    lines = [f"# The best of {search.num_trials} trials of a search: {best.outcome}."]
    if not best.settings:
        lines.append("# It is the base itself: nothing is known to beat it.")
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
    commands = []
    for row in rows:
        if row.status == FAILED:
            lines.append(f"\ntrial {row.number} failed: {row.error}")
            lines.append(f"  {_settings_text(row)}; see {row.folder}")
    lines += notes
    verdict = judge(search, rows)
    if verdict is not None:
        best = verdict.row
        lines.append(f"\n{_verdict_text(search, verdict)}")
        config = quoted(folder.best_config)
        commands.append(f"\nnext: python -m toolagent.run --config {config}")
        if best.settings:  # one trial may be lucky
            compared = f"python -m toolagent.run --seeds 0-4 --config {config}"
            commands.append(f"      {compared}")
            commands.append(f"      {compared.replace(config, quoted(folder.base))}")
        if best.checkpoint is not None:
            checkpoint = quoted(seen_from(Path(), best.checkpoint))
            settings = trial_settings(search.base_yaml, best.settings)
            network = settings.written("rl_module", "model_config").get("network", "")
            flags = cli.code_flags(settings.task, network)
            commands.append(f"      python -m toolagent.evaluate {checkpoint}{flags}")
    for line in lines:
        cli.say(console, line)
    for line in commands:
        console.print(line, soft_wrap=True)


def _verdict_text(search: Search, verdict: Verdict) -> str:
    best = verdict.row
    seeds = search.settings.seeds
    of = f"the median of {seeds} seeds" if seeds > 1 else "one seed"
    if not best.settings:
        return f"{verdict.why} ({of} each): trial {best.number}, {best.outcome}"
    lines = [
        f"best: trial {best.number}, {best.outcome} ({of})",
        f"  {_settings_text(best)}",
        f"  {verdict.why}",
    ]
    if seeds == 1:
        lines.append("  a small difference may be chance: compare several seeds of both, as below")
    return "\n".join(lines)


def _csv(search: Search, rows: list[TrialRow]) -> str:
    text = io.StringIO()
    figures = ("certified", *FIGURES)
    seed = ["seed"] * bool(search.seeds)
    columns = ["trial", *seed, "status", *search.space, *figures, "error"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        settings = {
            key: value if isinstance(value, (int, float, str)) else json.dumps(value)
            for key, value in (row.settings or search.base_values).items()
        }
        found = {name: row.metrics[name] for name in figures if name in row.metrics}
        entry = {"trial": row.number, "status": row.status, "error": row.error}
        writer.writerow(entry | dict.fromkeys(seed, row.seed) | settings | found)
    return text.getvalue()


def _settings_text(row: TrialRow) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in row.settings.items()) or BASE
