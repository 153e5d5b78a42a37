"""The charts of the report: matplotlib draws, CSS colours.

A chart is drawn once in light colours, which is the PNG; in the SVG the colours are replaced by
CSS variables, so that it follows the page into dark mode and onto paper. No name from a file is
ever drawn: legends are HTML (in PNGs, plain text without mathematics).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.figures import FIGURES
from toolagent.report.facts import Table, stages_of
from toolagent.report.run_files import RunRecord

# Light colours with a contrast of at least 4.5 on white; `page.css` has those for dark mode.
SERIES = ("#0b5fa5", "#c2410c", "#15803d", "#9333ea", "#a16207", "#be185d", "#0e7490", "#57534e")
DASHES = ("-", "--", ":", "-.")
INK, GRID, MARK = "#1c2128", "#d5dae1", "#6a7280"
_VARIABLES = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
    **{INK: "var(--ink)", GRID: "var(--grid)", MARK: "var(--mark)"},
}
MAX_POINTS = 300  # a line; more could not be told apart
TABLE_ROWS = 12
MAX_EVENTS = 12  # vertical lines that still can be told apart
_SIZE = (5.0, 3.1)  # inches; 360 units wide, so 1:1 in the narrowest window
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "toolagent",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MARK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "text.parse_math": False,
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    steps: list[float]
    values: list[float]

    @classmethod
    def of(cls, label: str, found: Iterable[tuple[float, float | None]], scale: float) -> Line:
        """Env steps and values, if any; means of neighbours where there are too many.

        Args:
            label: of the line.
            found: pairs of env steps and values; a value of None is left out.
            scale: by which values are multiplied.
        """
        pairs = [(step, value) for step, value in found if value is not None]
        if not pairs:
            return cls(label, [], [])
        steps, values = np.array(pairs, float).T
        if len(steps) > MAX_POINTS:
            edges = np.linspace(0, len(steps), MAX_POINTS + 1).astype(int)
            values = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
            steps = steps[edges[1:] - 1]
        return cls(label, steps.tolist(), (scale * values).tolist())


@dataclass(frozen=True)
class Chart:
    """A chart, and the same figures as a table."""

    key: str  # the PNG's name
    title: str
    description: str  # for who can't see it
    svg: str
    png: bytes
    table: Table
    labels: list[str]  # of the lines, in their order, which gives colour and dashes


TRAINING = {figure.name: figure.chart for figure in FIGURES if figure.chart}


def accuracy_charts(runs: list[RunRecord]) -> list[Chart]:
    """One run: all its stages, with what the curriculum did. Several: each of them on the same
    axes, side by side, and before them each stage with a line a run."""
    limit = max(run.rows[-1].env_steps for run in runs)

    def line(label: str, run: RunRecord, stage: int) -> Line:
        found = ((row.env_steps, row.accuracy.get(stage)) for row in run.measured)
        return Line.of(label, found, 100)

    charts = []
    for stage in stages_of(runs) if len(runs) > 1 else []:
        lines = [line(run.name, run, stage) for run in runs]
        charts.append(
            _chart(f"accuracy_stage_{stage}", f"Accuracy on stage {stage}", lines, "%", limit)
        )
    for number, run in enumerate(runs):
        lines = [line(f"stage {stage}", run, stage) for stage in stages_of([run])]
        marks = [(row.env_steps, row.next_stage) for row in run.rows if row.curriculum_event]
        title = "Accuracy of every stage" + (f": {run.name}" if len(runs) > 1 else "")
        key = "accuracy" if len(runs) == 1 else f"accuracy_run_{number}"
        charts.append(_chart(key, title, lines, "%", limit, marks))
    return charts


def tool_charts(run: RunRecord, suffix: str = "") -> list[Chart]:
    """For each stage the share of greedy programs in which each tool occurs; `suffix` ends the
    charts' keys."""
    charts = []
    for stage in sorted({stage for row in run.rows for stage in row.programs}):
        found = [
            (row.env_steps, row.programs[stage].tools) for row in run.rows if stage in row.programs
        ]
        lines = [
            Line.of(tool, ((steps, tools.get(tool, 0)) for steps, tools in found), 100)
            for tool in sorted({tool for _, tools in found for tool in tools})
        ]
        title = f"Tools in the programs of stage {stage}"
        charts.append(_chart(f"tools_stage_{stage}{suffix}", title, lines, "% of programs"))
    return charts


def training_charts(runs: list[RunRecord]) -> list[Chart]:
    """Speed, losses and the like, a line a run; what no run has is left out."""
    charts = []
    for name, drawn in TRAINING.items():
        lines = [
            Line.of(
                run.name,
                ((row.env_steps, getattr(row, name)) for row in run.rows),
                100 if drawn.percent else 1,
            )
            for run in runs
        ]
        if any(line.steps for line in lines):
            charts.append(_chart(name, drawn.title, lines, drawn.unit))
    return charts


def _chart(
    key: str,
    title: str,
    lines: list[Line],
    unit: str,
    last: float | None = None,
    marks: Sequence[tuple[int, int]] = (),
) -> Chart:
    """Draws the SVG, coloured by CSS, and the PNG.

    Args:
        key: name of the PNG.
        title: of the chart.
        lines: over env steps.
        unit: of the values; where it begins with '%', the axis shows 0 to 100.
        last: env step at which the axis ends; None: that of the longest line.
        marks: env step and stage of each step of the curriculum.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE)
        FigureCanvasAgg(figure)
        figure.subplots_adjust(left=0.15, right=0.965, bottom=0.165, top=0.95)
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            axes.plot(
                line.steps,
                line.values,
                label=line.label,
                color=SERIES[number % len(SERIES)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.8,
                marker="o" if len(line.steps) < 25 else None,
                markersize=3.5,
            )
        for step, stage in marks[:MAX_EVENTS]:
            axes.axvline(step, color=MARK, linestyle=(0, (1, 2)), linewidth=1.2)
            axes.annotate(
                f"stage {stage}",
                (step, 40),  # behind its line: the accuracy of the stage before rises up to it
                xytext=(2, 0),
                textcoords="offset points",
                rotation=90,
                ha="left",
                va="center",
                color=MARK,
                fontsize=9.5,
            )
        axes.set(xlabel="env steps", ylabel=unit, xlim=(0, last))
        if unit.startswith("%"):
            axes.set_ylim(-3, 103)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(lambda value, _: _short(value))
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(
            svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
        axes.set_title(title, fontsize=10.5)
        figure.subplots_adjust(top=0.9)
        if len(lines) > 1:
            axes.legend(fontsize=8, framealpha=0.8)
        figure.savefig(png, format="png", dpi=110)
    in_unit = f", in {unit}" if unit else ""
    ends = [f"{line.label} ends at {_text(line.values[-1])}" for line in lines if line.values]
    description = f"{title} over env steps{in_unit}. {'; '.join(ends)}."
    if marks:
        description += " The curriculum: " + "; ".join(
            f"stage {stage} from {step:,}" for step, stage in marks[:MAX_EVENTS]
        )
    return Chart(
        key,
        title,
        description,
        _inline(svg.getvalue().decode(), key),
        png.getvalue(),
        _table(f"{title}{in_unit}", lines),
        [line.label for line in lines],
    )


def _inline(svg: str, key: str) -> str:
    """For use inside a page: no XML header, no size, ids of its own, colours by CSS."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)
    svg = svg.replace("<svg", '<svg aria-hidden="true"', 1)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    colours = re.compile("|".join(_VARIABLES), re.IGNORECASE)
    return colours.sub(lambda match: _VARIABLES[match[0].lower()], svg)


def _short(value: float) -> str:
    """A figure on an axis: '200k', '1.5M', '0.05'."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:.6g}"


def _table(caption: str, lines: list[Line]) -> Table:
    """The figures at about a dozen env steps; where lines have steps of their own, the newest
    figure up to there."""
    steps = sorted({step for line in lines for step in line.steps})
    if len(steps) > TABLE_ROWS:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, TABLE_ROWS).round().astype(int)]
    rows = []
    for step in steps:
        cells = [f"{step:,.0f}"]
        for line in lines:
            index = int(np.searchsorted(line.steps, step, side="right")) - 1
            over = index < 0 or step > line.steps[-1]
            cells.append("-" if over else _text(line.values[index]))
        rows.append(cells)
    headings = ["env steps", *(line.label for line in lines)]
    return Table(caption, headings, rows, range(len(headings)))


def _text(value: Any) -> str:
    """A figure with three or four digits that mean something."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
