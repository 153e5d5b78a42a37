"""What runs learned, as one HTML page: `python -m toolagent.report DIR...`.

The page needs nothing but itself: no network, no other file. Beside it, in a folder of the same
name, its charts lie as PNGs. A run writes its own `DIR/report.html` at its end; the command makes
it again, makes it for a run that was killed, and puts runs, seeds and trials side by side.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import click

from toolagent import cli
from toolagent.errors import UserError
from toolagent.files import check_writable


@click.command(
    epilog=cli.examples(
        "python -m toolagent.report runs/my-run runs/my-other-run --output both.html",
        "python -m toolagent.report my-seeds other-seeds --output both.html",
    )
)
@click.argument("runs", nargs=-1, required=True, metavar="DIR...", type=cli.PATH)
@click.option(
    "--output",
    metavar="FILE",
    type=cli.PATH,
    help="The page to write. Default: DIR/report.html; needed where several runs are given.",
)
def command(runs: tuple[str, ...], output: str | None) -> None:
    """Write one HTML page on what the runs in DIR... learned, several of them side by side.

    DIR is a run, a folder of seeds (run --seeds) or a search (tune). Runs that differ in nothing
    but their seeds are one line, their median, with a band.
    """
    from toolagent.checkpoints.run_folder import REPORT
    from toolagent.report.page import (
        charts_folder,
        write_comparison,
        write_pictures,
        write_report,
    )
    from toolagent.report.sources import groups_of, read_source

    paths = [Path(run) for run in runs]
    _check_named_once(paths)
    if output is None and len(paths) > 1:
        raise UserError("several runs: name the page to write with --output FILE")
    sources = [read_source(path) for path in paths]
    records = [run for source in sources for run in source.runs]
    _check_named_once([record.path for record in records])  # a run, and the folder it is in
    file = Path(output) if output is not None else paths[0] / REPORT
    check_writable(file, "--output")
    charts = charts_folder(file)
    if charts is not None and charts.exists() and not charts.is_dir():
        raise UserError(f"{charts}: is a file; the page's charts go into a folder of that name")
    _check_own_files(file, [*paths, *(record.path for record in records)])
    if len(paths) == len(records) == 1:
        drawn = write_report(records[0], file)
    else:
        drawn = write_comparison(groups_of(sources), file)
    if charts is not None:
        write_pictures(charts, drawn)
    console = cli.console()
    for source in sources:
        for note in source.notes:
            cli.say(console, f"{cli.one_line(source.path)}: {cli.one_line(note)}")
    for record in records:
        for note in record.notes:
            cli.say(console, f"{cli.one_line(record.path)}: {cli.one_line(note)}")
    console.print(f"wrote {cli.one_line(file)}", soft_wrap=True)
    if charts is not None:
        console.print(f"      {len(drawn)} charts in {cli.one_line(charts)}", soft_wrap=True)


def _check_named_once(paths: list[Path]) -> None:
    # Not Path.resolve(), which raises for a link to itself.
    counts = Counter(os.path.realpath(path) for path in paths)
    for path in paths:
        if counts[os.path.realpath(path)] > 1:
            raise UserError(f"{path}: is named twice")


def _check_own_files(file: Path, runs: list[Path]) -> None:
    """Refuses a page that would take the place of what it is made from."""
    from toolagent.checkpoints.run_folder import (
        BASE,
        BEHAVIOUR,
        CHECKPOINTS,
        CONFIG,
        ENVIRONMENT,
        PROGRESS,
        SEARCH,
        SEEDS,
        SUMMARY,
    )

    for run in runs:
        for name in (BASE, BEHAVIOUR, CONFIG, ENVIRONMENT, PROGRESS, SEARCH, SEEDS, SUMMARY):
            if os.path.realpath(file) == os.path.realpath(run / name):
                raise UserError(f"--output {file}: is a file of the run; name another one")
        if os.path.realpath(file.with_suffix("")).startswith(os.path.realpath(run / CHECKPOINTS)):
            raise UserError(f"--output {file}: is where the run's checkpoints are; write elsewhere")


if __name__ == "__main__":
    sys.exit(cli.main(command))
