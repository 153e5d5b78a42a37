"""Searches for good settings with Ray Tune: `python -m toolagent.tune --config tune_calculator`."""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import TYPE_CHECKING

import click

from toolagent import cli
from toolagent.cli.activity import Activity
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_session import Cluster, cluster_to_join, ray_session
from toolagent.config.folder import descriptions, shipped_searches
from toolagent.errors import UserError, quoted
from toolagent.tune.folder import SearchFolder

if TYPE_CHECKING:
    from toolagent.tune.search import Search

_TIME = cli.FloatRange(min=0, min_open=True)


@click.command(
    epilog=cli.examples("python -m toolagent.tune --config tune_calculator --num-samples 8")
)
@click.option(
    "--config",
    metavar="FILE",
    type=cli.PATH,
    help="A search: a YAML file, or a shipped one's name.",
)
@click.option(
    "--list-configs", is_flag=True, help="Print the shipped searches and what they are, and end."
)
@click.option(
    "--output-dir",
    metavar="DIR",
    type=cli.PATH,
    help="New folder for results. Default: runs/tune-...",
)
@click.option("--stop-time-s", type=_TIME, metavar="X", help="Stop the search after X seconds.")
@click.option("--num-samples", type=cli.IntRange(min=1), metavar="N", help="Number of trials.")
@click.option("--resume", metavar="DIR", type=cli.PATH, help="Continue the search in DIR.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    envvar="RAY_ADDRESS",
    help="Join the Ray cluster there. Default: start one.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a value of the configuration, for all trials; can be repeated.",
)
def command(
    config: str | None,
    list_configs: bool,
    output_dir: str | None,
    stop_time_s: float | None,
    num_samples: int | None,
    resume: str | None,
    address: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Search for settings that certify every stage sooner, and write the best as a config."""
    if list_configs:
        cli.print_descriptions(descriptions(shipped_searches()))
        return 0
    _quiet_tune()
    address = cluster_to_join(address)
    if resume is not None:
        for flag, given in (
            ("--config", config),
            ("--output-dir", output_dir),
            ("--num-samples", num_samples),
            ("--set", overrides or None),
        ):
            if given is not None:
                raise UserError(f"{flag}: can't be given with --resume, which continues a search")
        # Read before anything is started: a wrong path is answered at once.
        folder = SearchFolder.existing(resume)
    elif output_dir is not None:
        folder = SearchFolder.new(output_dir, "")

    interrupt = Interrupt()
    with Activity(cli.console(), interrupt) as activity:
        activity.loading("torch", "ray.tune")
        from toolagent.config.folder import read_config
        from toolagent.tasks import get_task
        from toolagent.tune.search import load_search, search_from_texts, search_yaml
        from toolagent.tune.tuner import check_searcher

        if resume is not None:
            search = search_from_texts(
                read_config(folder.search), read_config(folder.base), f"--resume {resume}"
            )
        else:
            search = load_search(config, overrides, num_samples, stop_time_s)
            if output_dir is None:
                folder = SearchFolder.new(None, get_task(search.base.task).name)
        check_searcher(search)
        activity.doing("starting Ray")
        # What is searched over may name code too.
        space = search.settings.model_dump(mode="json")["space"]
        document = search.base.document() | {"space": space}
        with ray_session(address, search.base.run.dashboard, document) as cluster:
            activity.doing("preparing the search")
            if resume is None:
                folder.make(search_yaml(search), search.base_yaml)
            # A flag counts for this session; the search's own limit stays in its file.
            stop_time_s = stop_time_s or search.settings.stop_time_s
            return _run(search, folder, cluster, stop_time_s, activity, interrupt)


def _quiet_tune() -> None:
    """Keeps Tune to itself; to be called before Ray is imported."""
    for name, value in {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `Interrupt` is ours
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Trials run where the command was started, so that relative paths mean the same there.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }.items():
        os.environ.setdefault(name, value)


def _run(
    search: Search,
    folder: SearchFolder,
    cluster: Cluster,
    stop_time_s: float | None,
    activity: Activity,
    interrupt: Interrupt,
) -> int:
    from toolagent.tune.progress import SearchProgress
    from toolagent.tune.report import print_report, summarize, write_report
    from toolagent.tune.resources import plan
    from toolagent.tune.rows import UNFINISHED, TrialRow, rows_of
    from toolagent.tune.trial import trial_class
    from toolagent.tune.tuner import SearchEnd, earlier_trials, run_trials

    def all_ended(rows: list[TrialRow]) -> bool:
        return len(rows) == search.num_trials and all(row.status != UNFINISHED for row in rows)

    console = activity.console
    activity.stopping = "saves the trials and stops; Ctrl-C again: stops at once"
    settings = search.settings
    at_once, share, notes = plan(search, cluster)
    trainable = trial_class(search, share)
    earlier = earlier_trials(search, folder)
    cli.say(
        console,
        f"task {search.base.task}: {search.num_trials} trials, search {settings.search}, "
        f"scheduler {settings.scheduler}, objective {settings.objective}",
    )
    console.print(f"results in {folder.path}", soft_wrap=True)
    for note in notes:
        cli.say(console, note)
    cluster.tell_of_dashboard(functools.partial(cli.say, console))
    nothing_left = all_ended(rows_of(folder))
    start = time.monotonic()
    with interrupt:
        end = SearchEnd(interrupt, stop_time_s)
        progress = SearchProgress(activity, search)
        run_trials(search, folder, trainable, at_once, earlier, [progress, end])
    wall_time_s = folder.earlier_s + time.monotonic() - start
    rows = rows_of(folder)
    stopped_by = "completed"
    if interrupt.requested:
        stopped_by = "interrupted"
    elif end.reason is not None and not all_ended(rows):
        stopped_by = end.reason
    summary = summarize(search, rows, folder, stopped_by, wall_time_s)
    notes = write_report(search, rows, folder, summary)
    activity.end()
    print_report(console, search, rows, folder, summary, notes)
    if stopped_by != "completed":
        why = {"interrupted": "interrupted", "time": "the time is up"}[stopped_by]
        console.print(
            f"{why}; continue with python -m toolagent.tune --resume {quoted(folder.path)}",
            soft_wrap=True,
        )
    if interrupt.requested:
        return cli.EXIT_INTERRUPTED
    ranked = {row.trial_id for row in rows if row.ranked}
    if ranked and (nothing_left or ranked & progress.reported):
        return 0
    where = " in this session" if ranked else ""
    why = "see the messages above"
    if stopped_by == "time":
        why = (
            f"the time was up after {stop_time_s:g} s, before an iteration of a trial had ended; "
            "raise --stop-time-s"
        )
    print(f"error: no trial came to a result{where}; {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(cli.main(command))
