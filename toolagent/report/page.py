"""Puts the report together: one HTML file that needs nothing else; its charts also as PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolagent import __version__
from toolagent.checkpoints.run_files import Sample
from toolagent.errors import UserError
from toolagent.files import is_stream, write_result
from toolagent.report import charts, comparison, facts
from toolagent.report.charts import Chart
from toolagent.report.run_files import RunRecord
from toolagent.report.sources import Group

_DASHES = ("none", "6 3", "1.5 3", "6 3 1.5 3")  # `charts.DASHES`, as SVG has them
SAMPLES_OPEN = 1  # of each stage; the others are folded


def write_report(run: RunRecord, file: Path, accuracy: Chart | None = None) -> list[Chart]:
    """Writes a page on one run.

    Args:
        run: the run.
        file: `report.html`.
        accuracy: `charts.accuracy_chart` of the run, if that is drawn already.

    Returns:
        The charts on it.

    Raises:
        UserError: the file can't be written.
    """
    accuracy, tools = accuracy or charts.accuracy_chart(run), charts.tool_charts(run)
    training = charts.training_charts([Group(run.name, [run])])
    samples: dict[int, list[Sample]] = {}
    for sample in run.behaviour.trajectories if run.behaviour else []:
        samples.setdefault(sample.stage, []).append(sample)
    return _write(
        file,
        "page.html",
        [accuracy, *tools, *training],
        run=run,
        title=f"{run.task}, {run.algorithm}, seed {run.seed}",
        headline=facts.headline(run),
        accuracies=facts.accuracies(run),
        optimality=facts.optimality(run),
        events=facts.events(run),
        tools=facts.tools_first_used(run),
        programs=facts.programs_over_time(run),
        samples=samples,
        formulas={stage: facts.formula(run, stage) for stage in samples},
        environment=facts.environment(run),
        accuracy_chart=accuracy,
        tool_charts=tools,
        training_charts=training,
        samples_open=SAMPLES_OPEN,
    )


def write_comparison(groups: list[Group], file: Path) -> list[Chart]:
    """Writes a page that puts groups of runs side by side.

    Args:
        groups: at least one, all of the same task.
        file: the page.

    Returns:
        The charts on it.

    Raises:
        UserError: the runs are of different tasks, there are more groups than lines that can be
            told apart, or the file can't be written.
    """
    runs = [run for group in groups for run in group.runs]
    tasks = {run.task: run for run in runs}
    if len(tasks) > 1:
        of = ", ".join(f"{run.path} is of {task}" for task, run in tasks.items())
        raise UserError(f"runs of different tasks can't be put side by side: {of}")
    if len(groups) > charts.MAX_LINES:
        raise UserError(
            f"{len(groups)} configurations: at most {charts.MAX_LINES} can be told apart in a chart"
        )
    accuracy, training = charts.compared_accuracy(groups), charts.training_charts(groups)
    counted = f"{len(runs)} runs"
    if len(groups) > 1 and len(runs) > len(groups):
        counted += f" of {len(groups)} configurations"
    return _write(
        file,
        "comparison.html",
        [*accuracy, *training],
        groups=groups,
        title=f"{runs[0].task}, {counted}",
        overview=comparison.overview(groups),
        accuracies=comparison.accuracy_table(groups),
        solving=comparison.solving_table(groups),
        differences=comparison.differences(groups) if len(groups) > 1 else None,
        method=comparison.METHOD,
        banded=any(len(group.runs) > 1 for group in groups),
        accuracy_charts=accuracy,
        training_charts=training,
    )


def _write(file: Path, template: str, drawn: list[Chart], **content: Any) -> list[Chart]:
    """Fills the template and writes it."""
    page = (
        _environment()
        .get_template(template)
        .render(version=__version__, series=charts.SERIES, **content)
    )
    write_result(file, page.encode())
    return drawn


def write_pictures(folder: Path, drawn: list[Chart]) -> None:
    """Writes charts as PNGs.

    Args:
        folder: `charts_folder` of their page; made if it is not there.
        drawn: the charts.

    Raises:
        UserError: a file can't be written.
        OSError: the folder can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for chart in drawn:
        write_result(folder / f"{chart.key}.png", chart.png())


def charts_folder(file: Path) -> Path | None:
    """Where the charts of a page lie as PNGs; None for a page written to a device or a pipe."""
    if is_stream(file):
        return None
    return file.with_suffix("") if file.suffix else file.with_name(f"{file.name}-charts")


def _environment() -> Any:
    """Jinja2 with everything escaped but the charts' SVG."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("toolagent.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["probability"] = _probability
    environment.filters["verdict"] = _verdict
    environment.filters["dashes"] = lambda line: _DASHES[charts.dash_index(line)]
    return environment


def _probability(value: float | None) -> str:
    """Rounded down: '1.000' is certain."""
    return "-" if value is None else f"{int(value * 1000) / 1000:.3f}"


def _verdict(sample: Sample) -> str:
    if not sample.answered:
        return "wrong: no answer"
    if sample.solved:
        return f"right: {sample.target}"
    # None: an empty register, or the task does not tell what is answered.
    other = "" if sample.answer is None else f"{sample.answer}, "
    return f"wrong: {other}not {sample.target}"
