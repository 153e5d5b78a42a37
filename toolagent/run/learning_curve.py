"""The picture of a run: greedy accuracy per stage over env steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_learning_curve(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Writes a PNG; dotted lines mark where the curriculum changed the stage.

    Args:
        rows: those of `progress.jsonl`.
        path: of the PNG.
        title: above the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    measured = [row for row in rows if row["measured"]]
    stages = sorted({stage for row in measured for stage in row["accuracy"]})
    steps = [row["env_steps"] for row in measured]
    for stage in stages:
        accuracy = [100 * row["accuracy"][stage] for row in measured]
        marker = "o" if len(measured) < 40 else None
        axes.plot(steps, accuracy, label=f"stage {stage}", marker=marker, markersize=3)
    for row in rows:
        if row["curriculum_event"]:
            axes.axvline(row["env_steps"], color="grey", linestyle=":", linewidth=1)
            axes.annotate(
                f"stage {row['next_stage']}",
                (row["env_steps"], 50),
                rotation=90,
                ha="right",
                va="center",
                color="grey",
                fontsize=8,
            )
    axes.set(
        xlabel="env steps",
        ylabel="greedy accuracy on fresh problems (%)",
        ylim=(-3, 103),
        title=title,
    )
    axes.ticklabel_format(axis="x", style="plain")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    if stages:
        axes.legend(loc="best")
    figure.savefig(path, dpi=120)
