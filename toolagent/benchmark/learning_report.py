"""Runs the learning record or the ablations and prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from toolagent import cli
from toolagent.benchmark.learning import (
    ABLATION_SEEDS,
    ABLATIONS,
    RECORD_SEEDS,
    LearningRun,
    learning_run,
    plot_record,
    summary_row,
)

_RECORD_LIMIT_S = 120.0
_ABLATION_LIMIT_S = 20.0  # over 2 million env steps, six times what the default needs


def measure_learning(ablations: bool, plot: Path | None, progress: Any) -> dict[str, Any]:
    """The default run over 20 seeds, or the default and its ablations over 3.

    Args:
        ablations: instead of the record.
        plot: a PNG of the record; None: no plot.
        progress: has `announce(text)`.

    Returns:
        What the table shows, for JSON.
    """
    variants = ABLATIONS if ablations else {"default": ()}
    seeds = ABLATION_SEEDS if ablations else RECORD_SEEDS
    limit = _ABLATION_LIMIT_S if ablations else _RECORD_LIMIT_S
    rows = []
    runs: list[LearningRun] = []
    for name, overrides in variants.items():
        runs = []
        for number, seed in enumerate(seeds):
            progress.announce(f"{name}: seed {seed}, {number + 1} of {len(seeds)}")
            runs.append(learning_run(seed, overrides, limit))
        rows.append(summary_row(name, runs))
    if plot is not None and not ablations:
        plot_record(runs, plot)
    return {"limit_s": limit, "learning": rows}


def print_learning(console: Console, rows: list[dict[str, Any]], limit_s: float) -> None:
    """Median and worst env steps and seconds until each stage was certified."""
    table = cli.table(
        "run", "solved", "stage", "env steps", "worst", "seconds", "worst s",
        right=("solved", "stage", "env steps", "worst", "seconds", "worst s"),
    )  # fmt: skip
    for row in rows:
        for stage in row["stages"]:
            first = stage["stage"] == 0
            table.add_row(
                row["name"] if first else "",
                f"{row['solved']}/{row['runs']}" if first else "",
                str(stage["stage"]),
                *(_text(stage["env_steps"][which], ",.0f") for which in ("median", "worst")),
                *(_text(stage["seconds"][which], ".1f") for which in ("median", "worst")),
            )
    cli.print_table(console, table)
    console.print(
        f"until every problem of the stage is solved, median and worst of the seeds; -: not within "
        f"{limit_s:g} s of training",
        soft_wrap=True,
    )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
