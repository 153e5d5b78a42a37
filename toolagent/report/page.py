"""Puts the report together: one HTML file that needs nothing else, and PNGs beside it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from toolagent import __version__
from toolagent.checkpoints.run_files import Sample
from toolagent.errors import UserError
from toolagent.files import is_stream, write_result
from toolagent.report import charts, facts
from toolagent.report.run_files import RunRecord

_DASHES = ("none", "6 3", "1.5 3", "6 3 1.5 3")  # `charts.DASHES`, as SVG has them
SAMPLES_OPEN = 1  # of each stage; the others are folded


def write_report(runs: list[RunRecord], file: Path) -> list[Path]:
    """Writes `file`, and the charts as PNGs into a folder beside it with the file's name.

    Args:
        runs: at least one, all of the same task.
        file: `report.html`; its charts go to `report/`.

    Returns:
        The files written, the page first.

    Raises:
        UserError: the runs are of different tasks, or a file can't be written.
        OSError: the folder of the charts can't be made.
    """
    tasks = {run.task: run for run in runs}
    if len(tasks) > 1:
        of = ", ".join(f"{run.path} is of {task}" for task, run in tasks.items())
        raise UserError(f"runs of different tasks can't be put side by side: {of}")
    accuracy, training = charts.accuracy_charts(runs), charts.training_charts(runs)
    tools = [
        charts.tool_charts(run, f"_run_{number}" if len(runs) > 1 else "")
        for number, run in enumerate(runs)
    ]
    page = _environment().get_template("page.html").render(
        runs=[_run(run, drawn) for run, drawn in zip(runs, tools, strict=True)],
        title=_title(runs),
        overview=facts.overview(runs),
        accuracy_charts=accuracy,
        training_charts=training,
        version=__version__,
        samples_open=SAMPLES_OPEN,
        series=charts.SERIES,
    )  # fmt: skip
    written = [file]
    folder = charts_folder(file)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in (*accuracy, *itertools.chain(*tools), *training):
            written.append(folder / f"{chart.key}.png")
            write_result(written[-1], chart.png)
    write_result(file, page.encode())
    return written


def charts_folder(file: Path) -> Path | None:
    """Where the charts of a page lie as PNGs; None for a page written to a device or a pipe."""
    if is_stream(file):
        return None
    return file.with_suffix("") if file.suffix else file.with_name(f"{file.name}-charts")


def _run(run: RunRecord, tool_charts: list[charts.Chart]) -> dict[str, Any]:
    """What the template shows of one run."""
    samples: dict[int, list[Sample]] = {}
    for sample in run.behaviour.trajectories if run.behaviour else []:
        samples.setdefault(sample.stage, []).append(sample)
    return {
        "record": run,
        "headline": facts.headline(run),
        "accuracies": facts.accuracies(run),
        "optimality": facts.optimality(run),
        "events": facts.events(run),
        "tools": facts.tools_first_used(run),
        "tool_charts": tool_charts,
        "programs": facts.programs_over_time(run),
        "samples": samples,
        "formulas": {stage: facts.formula(run, stage) for stage in samples},
        "environment": facts.environment(run),
    }


def _title(runs: list[RunRecord]) -> str:
    first = runs[0]
    if len(runs) == 1:
        return f"{first.task}, {first.algorithm}, seed {first.seed}"
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"{first.task}, {len(runs)} runs, seeds {seeds}"


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
    environment.filters["dashes"] = lambda line: _DASHES[line % len(_DASHES)]
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
