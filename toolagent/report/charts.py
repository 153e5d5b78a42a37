"""The charts of the report: matplotlib draws, CSS colours.

A chart is drawn once in light colours, which is the PNG; in the SVG the colours are replaced by
CSS variables, so that it follows the page into dark mode and onto paper. Names from files are plain
text without mathematics; legends are HTML, except in PNGs.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.cli import one_line
from toolagent.figures import FIGURES
from toolagent.report.facts import Table, stages_of, tools_of
from toolagent.report.run_files import RunRecord
from toolagent.report.sources import Group

# A line's colour and dashes: the pair is another for each of the first `MAX_LINES` lines.
# Light colours with a contrast of at least 4.5 on white; `page.css` has those for dark mode.
SERIES = ("#0b5fa5", "#c2410c", "#15803d", "#9333ea", "#a16207", "#be185d", "#0e7490", "#57534e")
DASHES = ("-", "--", ":", "-.")
MAX_LINES = len(SERIES) * len(DASHES)
INK, GRID, MARK = "#1c2128", "#d5dae1", "#6a7280"
_VARIABLES = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
    **{INK: "var(--ink)", GRID: "var(--grid)", MARK: "var(--mark)"},
}
MAX_POINTS = 300  # a line; more could not be told apart
TABLE_ROWS = 12
MAX_EVENTS = 12  # vertical lines that still can be told apart
_GRID_POINTS = 200  # env steps at which the runs of a group are compared
_CELLS = 48  # of a heatmap, from left to right
_LONGEST_TOOL = 14  # characters of its name
_SHADES = 8  # of a heatmap, from none to all
_SIZE = (5.0, 3.1)  # inches; 360 units wide, so 1:1 in the narrowest window
_TITLE_HEIGHT = 0.3  # inches, in a PNG
_ROUND = [1, 2, 2.5, 5, 10]  # the steps between ticks, but for powers of ten
_CLOSE = 0.07  # of the width: labels nearer than that would touch
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
    """One line of a chart, and a band around it if it stands for several runs."""

    label: str
    steps: list[float]
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

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

    @classmethod
    def over(cls, label: str, lines: list[Line], hold: bool) -> Line:
        """The median of several runs' lines, and their middle half as a band; of one run, its line.

        It ends where fewer than half of the runs go on.

        Args:
            label: of the line.
            lines: one of each run.
            hold: a run that has ended keeps its last value.
        """
        lines = [line for line in lines if line.steps]
        if len(lines) < 2:
            return cls(label, lines[0].steps, lines[0].values) if lines else cls(label, [], [])
        steps = np.linspace(
            min(line.steps[0] for line in lines),
            max(line.steps[-1] for line in lines),
            _GRID_POINTS,
        )
        values = np.array(
            [
                np.interp(
                    *(steps, line.steps, line.values),
                    left=np.nan,
                    right=line.values[-1] if hold else np.nan,
                )
                for line in lines
            ]
        )
        kept = 2 * (~np.isnan(values)).sum(axis=0) >= len(lines)
        low, median, high = np.nanpercentile(values[:, kept], (25, 50, 75), axis=0).tolist()
        return cls(label, steps[kept].tolist(), median, low, high)


@dataclass(frozen=True)
class Chart:
    """A chart, and the same figures as a table."""

    key: str  # the PNG's name
    title: str
    description: str  # for who can't see it
    svg: str
    png: Callable[[], bytes]  # draws it, once
    table: Table
    labels: list[str]  # of the lines, in their order, which gives colour and dashes


TRAINING = {figure.name: figure.chart for figure in FIGURES if figure.chart}


def accuracy_chart(run: RunRecord) -> Chart:
    """All stages of a run, with what the curriculum did."""
    lines = [_accuracy(run, stage, f"stage {stage}") for stage in stages_of([run])]
    marks = [(row.env_steps, row.next_stage) for row in run.rows if row.curriculum_event]
    title = "Accuracy of every stage"
    return _chart("accuracy", title, lines, "%", run.rows[-1].env_steps, marks)


def compared_accuracy(groups: list[Group]) -> list[Chart]:
    """A chart a stage, with a line a group."""
    runs = [run for group in groups for run in group.runs]
    limit = max(run.rows[-1].env_steps for run in runs)
    charts = []
    for stage in stages_of(runs):
        lines = [
            Line.over(group.name, [_accuracy(run, stage, "") for run in group.runs], hold=True)
            for group in groups
        ]
        title = f"Accuracy on stage {stage}"
        charts.append(_chart(f"accuracy_stage_{stage}", title, lines, "%", limit))
    return charts


def _accuracy(run: RunRecord, stage: int, label: str) -> Line:
    found = [(row.env_steps, row.accuracy.get(stage)) for row in run.measured]
    return Line.of(label, [(0, run.rows[0].accuracy_at_start.get(stage)), *found], 100)


def training_charts(groups: list[Group]) -> list[Chart]:
    """Speed, losses and the like, a line a group; what no run has is left out."""
    charts = []
    for name, drawn in TRAINING.items():
        scale = 100 if drawn.percent else 1

        def line(run: RunRecord, name: str = name, scale: float = scale) -> Line:
            return Line.of("", ((row.env_steps, getattr(row, name)) for row in run.rows), scale)

        lines = [Line.over(g.name, [line(run) for run in g.runs], hold=False) for g in groups]
        if any(line.steps for line in lines):
            charts.append(_chart(name, drawn.title, lines, drawn.unit))
    return charts


def tool_charts(run: RunRecord) -> list[Chart]:
    """For each stage a heatmap of the tools over env steps: the darker, the larger the share of
    the greedy programs in which the tool occurs."""
    charts = []
    seen = {
        tool
        for row in run.rows
        for program in row.programs.values()
        for tool, share in program.tools.items()
        if share > 0
    }
    # The same rows for each stage.
    used = [tool for tool in tools_of(run) if tool in seen] or sorted(seen)
    for stage in sorted({stage for row in run.rows for stage in row.programs} if used else ()):
        found = [
            (row.env_steps, row.programs[stage].tools) for row in run.rows if stage in row.programs
        ]
        lines = [
            Line.of(tool, ((steps, tools.get(tool, 0)) for steps, tools in found), 100)
            for tool in used
        ]
        title = f"Tools in the programs of stage {stage}"
        charts.append(_heatmap(f"tools_stage_{stage}", title, lines, "% of programs"))
    return charts


def _chart(
    key: str,
    title: str,
    lines: list[Line],
    unit: str,
    last: float | None = None,
    marks: Sequence[tuple[int, int]] = (),
) -> Chart:
    """Lines over env steps.

    Args:
        key: name of the PNG.
        title: of the chart.
        lines: over env steps.
        unit: of the values; where it begins with '%', the axis shows 0 to 100.
        last: env step at which the axis ends; None: that of the longest line.
        marks: env step and stage of each step of the curriculum.
    """

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        for number, line in enumerate(lines):
            colour = SERIES[number % len(SERIES)]
            axes.plot(
                line.steps,
                line.values,
                label=line.label,
                color=colour,
                linestyle=dashes_of(number),
                linewidth=1.8,
                marker="o" if len(line.steps) < 25 else None,
                markersize=3.5,
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(
                    line.steps, line.low, line.high, color=colour, alpha=0.18, linewidth=0
                )
        end = last or max((line.steps[-1] for line in lines if line.steps), default=1)
        for step, label in _together(marks[:MAX_EVENTS], end):
            axes.annotate(
                label,
                (step, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=MARK,
                fontsize=9.5,
            )
        for step, _ in marks[:MAX_EVENTS]:
            axes.axvline(step, color=MARK, linestyle=(0, (1, 2)), linewidth=1.2)
        axes.set(ylabel=unit, xlim=(0, end))
        if unit.startswith("%"):
            axes.set(ylim=(-3, 103), yticks=range(0, 101, 25))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
            axes.yaxis.set_major_formatter(lambda value, _: _short(value))
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)

    svg, png = _drawn(draw, title, key, legend=len(lines) > 1)
    in_unit = f", in {unit}" if unit else ""
    ends = [f"{line.label} ends at {_text(line.values[-1])}" for line in lines if line.values]
    description = f"{title} over env steps{in_unit}. {'; '.join(ends)}."
    if marks:
        description += " The curriculum: " + "; ".join(
            f"stage {stage} from {step:,}" for step, stage in marks[:MAX_EVENTS]
        )
    table = _table(f"{title}{in_unit}", lines)
    return Chart(key, title, description, svg, png, table, [line.label for line in lines])


def _heatmap(key: str, title: str, lines: list[Line], unit: str) -> Chart:
    """A row a line, over env steps: the larger its value (0..100), the darker."""
    ends = max(line.steps[-1] for line in lines)

    def draw(axes: Any) -> None:
        edges = np.linspace(0, ends, _CELLS + 1)
        for place, line in enumerate(lines):
            # In each cell the newest value up to its end; before the first there is none.
            newest = np.searchsorted(line.steps, edges[1:], side="right") - 1
            values = np.where(newest < 0, 0.0, np.array(line.values)[newest])
            shades = np.ceil(values / 100 * _SHADES).astype(int)
            bounds = [0, *(np.flatnonzero(np.diff(shades)) + 1), _CELLS]
            for left, right in itertools.pairwise(bounds):
                if shades[left]:
                    axes.barh(
                        place,
                        edges[right] - edges[left],
                        left=edges[left],
                        height=0.82,
                        color=SERIES[0],
                        alpha=float(shades[left] / _SHADES),
                        linewidth=0,
                    )
        axes.set(xlim=(0, ends), ylim=(len(lines) - 0.4, -0.6))
        names = [one_line(line.label)[:_LONGEST_TOOL] for line in lines]
        axes.set_yticks(range(len(lines)), names)
        axes.tick_params(axis="y", length=0)

    height = 0.75 + 0.21 * len(lines)
    svg, png = _drawn(draw, title, key, legend=False, height=height)
    used = [f"{line.label} ends at {_text(line.values[-1])}" for line in lines]
    description = f"{title} over env steps, in {unit}. {'; '.join(used)}."
    return Chart(key, title, description, svg, png, _table(f"{title}, in {unit}", lines), [])


def _drawn(
    draw: Callable[[Any], None], title: str, key: str, legend: bool, height: float = _SIZE[1]
) -> tuple[str, Callable[[], bytes]]:
    """The SVG, coloured by CSS, of what is drawn on axes over env steps; and what draws the PNG,
    which takes longer."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(_STYLE):
        # Laid out around its labels, however long they are. Once: that takes longer than to draw.
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("env steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)
        svg = io.BytesIO()
        figure.savefig(
            svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )

    def drawn_png() -> bytes:
        png = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            # The PNG has room for the title above the same axes.
            left, bottom, width, shown = axes.get_position().bounds
            scale = height / (height + _TITLE_HEIGHT)
            figure.set_size_inches(_SIZE[0], height + _TITLE_HEIGHT)
            axes.set_position((left, bottom * scale, width, shown * scale))
            axes.set_title(title, fontsize=10.5, pad=16)
            if legend:
                axes.legend(fontsize=8, framealpha=0.8)
            figure.savefig(png, format="png", dpi=110)
        return png.getvalue()

    return _inline(svg.getvalue().decode(), key), functools.cache(drawn_png)


def dashes_of(number: int) -> str:
    """The dashes of a line, which with its colour are no other line's."""
    return DASHES[dash_index(number)]


def dash_index(number: int) -> int:
    """As `dashes_of`, as an index of `DASHES`."""
    return (number + number // len(SERIES)) % len(DASHES)


def _together(marks: Sequence[tuple[int, int]], end: float) -> list[tuple[float, str]]:
    """Where to write which stage numbers: those of marks that are close to each other in one."""
    found: list[tuple[float, list[int]]] = []
    for step, stage in marks:
        # A list of stages is as long as it is.
        if found and step - found[-1][0] < _CLOSE * end * (1 + len(found[-1][1])) / 2:
            found[-1][1].append(stage)
        else:
            found.append((float(step), [stage]))
    return [
        (step, ", ".join(map(str, stages)) if len(stages) < 4 else f"{stages[0]} ... {stages[-1]}")
        for step, stages in found
    ]


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
