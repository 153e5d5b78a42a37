"""The benchmark's tables, each narrow enough for 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from toolagent import cli

_BUSY = 0.5  # load per core from which the figures are not to be trusted
_RATES = (
    ("steps/s", "env_steps_per_s", ",.0f"),
    ("min", "min", ",.0f"),
    ("max", "max", ",.0f"),
)
# Heading, key and format of each column; a column that no row has is left out.
_ROWS = (
    ("row", "name", ""),
    *_RATES,
    ("eps/s", "episodes_per_s", ",.0f"),
    ("len", "episode_len_mean", ".2f"),
    ("/bare", "ratio_to_bare_loop", ".2f"),
    ("/stock", "ratio_to_stock_rllib", ".1f"),
    ("MiB", "memory_mib", ",.0f"),
)
_SCALING = (
    ("runners", "num_env_runners", "d"),
    *_RATES,
    ("of 2's", "relative_to_2", ".2f"),
    ("learner idle", "learner_idle_share", ".0%"),
    ("sampler idle", "sampler_idle_share", ".0%"),
    ("MiB", "memory_mib", ",.0f"),
)
_SPLIT = {  # key in `time_split` -> what the table says
    "inference": "runner: inference",
    "machine": "runner: machine",
    "sampler_other": "runner: other",
    "sampler_idle": "runner: idle",
    "learner": "driver: learner",
    "sync": "driver: sync",
    "driver_other": "driver: other",
    "idle": "driver: idle",
    "transfer": "transfer (within these)",
}


def print_benchmark(console: Console, result: Mapping[str, Any]) -> None:
    """Everything in the JSON document that a person wants to see."""
    if result.get("run"):
        cli.say(console, _run(result["run"]))
    cli.print_table(console, _table(result["rows"], _ROWS))
    for row in result["rows"]:
        if "exploration" in row:
            cli.say(console, f"{row['name']}: {_exploration(row)}")
    split = [row for row in result["rows"] if "time_split" in row]
    if split:
        console.print("\nshare of the wall time")
        cli.print_table(console, _time_split(split))
    if result.get("scaling"):
        console.print("\nenv runners on these cores")
        cli.print_table(console, _table(result["scaling"], _SCALING))
    for title, key in (("scale on paper", "scale"), ("start-up", "startup")):
        if result.get(key):
            console.print(f"\n{title}")
            cli.print_table(console, _figures(result[key]))
    if result.get("limits"):
        console.print(f"\nlimited by {result['limits']['why']}")
    if result.get("load_before", 0.0) > _BUSY * result.get("cores", 1):
        console.print(
            f"\nThe machine was busy before: load {result['load_before']:.1f} on "
            f"{result['cores']} cores. Rows of several processes suffer most; measure again."
        )


def _run(run: Mapping[str, Any]) -> str:
    steps = run["env_steps"]
    trained = "" if steps is None else f", trained for {steps:,} env steps"
    where = f"{run['folder']}, {run['checkpoint']}{trained}"
    return f"{where}\ntask {run['task']}, stage {run['stage']}, learning rate 0\n"


def _exploration(row: Mapping[str, Any]) -> str:
    """How much exploration there was in the measured blocks, as part of a sentence."""
    figures = row["exploration"]
    if figures["replay_coeff"] == 0:
        return "no explorers, no replay"
    explorers = f"explorers {figures['explorer_env_steps_per_s']:,.0f} steps/s"
    replayed = figures["replayed_episodes_per_update"]
    if replayed == 0:
        return (
            f"replay is on, but NOTHING WAS REPLAYED: nothing worth it was found, "
            f"nor in {row['warm_up_updates']:,} updates of warm-up; {explorers}"
        )
    return f"replays {replayed:.1f} of {figures['replay_episodes']} episodes an update; {explorers}"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> Table:
    shown = [column for column in columns if any(column[1] in row for row in rows)]
    right = [heading for heading, _, form in shown if form]
    table = cli.table(*(heading for heading, _, _ in shown), right=right)
    for row in rows:
        table.add_row(*(format(row[key], form) for _, key, form in shown))
    return table


def _time_split(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = [row["name"] for row in rows]
    table = cli.table("part", *names, right=names)
    for key, label in _SPLIT.items():
        table.add_row(label, *(f"{row['time_split'][key]:.1%}" for row in rows))
    return table


def _figures(figures: Mapping[str, float]) -> Table:
    table = cli.table("figure", "value", right=("value",))
    for name, value in figures.items():
        table.add_row(name.replace("_", " ").replace(" per s", "/s"), _number(value))
    return table


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
