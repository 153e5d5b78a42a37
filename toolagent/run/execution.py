"""One run on a cluster that is up, from its folder to its report."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from rich.console import Console

from toolagent import cli
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.config import (
    add_callbacks,
    check_placement,
    config_sha256,
    documents,
    share_cpus,
    to_yaml,
    with_auto_runners,
)
from toolagent.errors import UserError
from toolagent.files import write_atomically
from toolagent.report.charts import Chart, accuracy_chart
from toolagent.report.facts import know_shortest_programs
from toolagent.report.page import write_report
from toolagent.report.run_files import read_run
from toolagent.rollouts.stock_recorder import RecordEpisodesCallback
from toolagent.rollouts.trajectory import Trajectory
from toolagent.run.ahead import FOR_RESULTS, import_ahead
from toolagent.run.environment import describe_environment
from toolagent.run.recording import recording_of
from toolagent.run.results import behaviour, print_report, sample_trajectories, summarize
from toolagent.run.session import Session
from toolagent.run.start import take_up
from toolagent.run.supervision import RunFailed, Supervision
from toolagent.run.training import Outcome
from toolagent.trackers.base import FINISHED, INTERRUPTED
from toolagent.trackers.group import result_files


def execute(session: Session) -> int:
    """Trains to a stop and writes everything that a run leaves.

    Returns:
        The exit code.

    Raises:
        UserError: the cluster is too small, the folder can't be written, a tracker refuses.
    """
    notes = _fit_to_cluster(session)
    _begin_records(session, notes)
    _print_what_begins(session, notes)
    rows = _rows_so_far(session)
    torch.set_num_threads(1)  # the local learner's; more than one gains nothing here
    import_ahead(FOR_RESULTS, functools.partial(know_shortest_programs, session.settings.task))
    try:
        outcome = Supervision(session).run(rows)
    except RunFailed as error:
        session.fail(str(error))
        return 1
    session.cluster.end()  # its processes take a second to end
    unwritten = _publish_results(session, outcome)
    return _exit_code(session, outcome, unwritten)


def _fit_to_cluster(session: Session) -> list[str]:
    """Makes the config fit the cluster; a line for each thing that was changed."""
    cluster, config, notes = session.cluster, session.algorithm_config, []
    if session.settings.auto_runners:
        config, note = with_auto_runners(config, cluster.offers, cluster.driver, cluster.joined)
        notes.append(note)
    config, shared = share_cpus(config, cluster.cpus, cluster.nodes)
    check_placement(config, cluster.offers, cluster.driver)
    session.algorithm_config = config
    return [*notes, *shared]


def _begin_records(session: Session, notes: list[str]) -> None:
    """Makes the folder, and begins the records: of each tracker, and of the episodes."""
    settings, folder, cluster = session.settings, session.folder, session.cluster
    text = to_yaml(settings)
    header = "".join(f"# Here: {note}\n" for note in notes)
    # Of all that could be refused, only a tracker comes after.
    folder.make(header + text, session.start.resumed)
    document = documents.parse(text, "the configuration")
    session.trackers.start(document, config_sha256=config_sha256(settings))
    offered = {"cpus": cluster.cpus, "gpus": cluster.gpus, "nodes": cluster.nodes}
    folder.add_environment(describe_environment(cluster=offered))
    add_callbacks(session.algorithm_config, [RecordEpisodesCallback])
    session.recording = recording_of(settings, folder.path)
    if session.recording is not None:
        recording = session.recording.to_dict()
        session.algorithm_config.environment(env_config={"recording": recording})


def _print_what_begins(session: Session, notes: list[str]) -> None:
    console, settings, folder = session.console, session.settings, session.folder
    console.print(f"task {settings.task}, algorithm {settings.algorithm}, seed {settings.seed}")
    console.print(f"results in {folder.name}", soft_wrap=True)
    if folder.mirror is not None:
        console.print(f"until they are there, in {folder.path}", soft_wrap=True)
    for note in (*notes, *session.start.notes):
        cli.say(console, note)


def _rows_so_far(session: Session) -> list[dict[str, Any]]:
    """The rows of the progress that a resumed run continues from."""
    start, folder = session.start, session.folder
    if start.resumed:
        rows = take_up(session.console, folder, start)
        session.trackers.go_back(start.state.env_steps)
        return rows
    if start.policy is not None:
        folder.note_origin(start.policy.folder)
    return []


def _publish_results(session: Session, outcome: Outcome) -> str | None:
    """Writes the results and hands them to the trackers; they are printed when all is done.

    Returns:
        Why files of the results could not be written; None if all were.
    """
    folder = session.folder
    session.summary = summary = summarize(outcome)
    # 'auto' is known only now.
    summary["num_env_runners"] = session.algorithm_config.num_env_runners
    samples = sample_trajectories(outcome)
    session.display.doing("writing the results")
    accuracy, unwritten = _write_results(folder, summary, outcome, samples)
    _write_report(folder, accuracy)
    status = INTERRUPTED if outcome.stopped_by == "interrupted" else FINISHED
    files = result_files(folder, outcome.keeper.last or folder.checkpoints)
    session.trackers.end(status, summary, files)
    session.print_results = functools.partial(_print_results, session.console, outcome, samples)
    return unwritten


def _print_results(console: Console, outcome: Outcome, samples: list[Trajectory]) -> None:
    print_report(console, outcome, samples)
    for line in outcome.recorded:
        cli.say(console, line)


def _write_results(
    folder: RunFolder, summary: dict[str, Any], outcome: Outcome, samples: list[Trajectory]
) -> tuple[Chart | None, str | None]:
    """The results as files.

    Returns:
        The learning curve, if it could be drawn; and why files could not be written, or None.
    """
    accuracy = None
    try:
        folder.write_summary(summary)
        folder.write_behaviour(behaviour(outcome, samples))
        if outcome.rows:
            accuracy = accuracy_chart(read_run(folder.path))
            write_atomically(folder.learning_curve, accuracy.png())
    except (OSError, UserError) as error:  # the results are printed all the same
        return accuracy, getattr(error, "strerror", None) or f"{error}"
    return accuracy, None


def _exit_code(session: Session, outcome: Outcome, unwritten: str | None) -> int:
    """The exit code, and on stderr what is missing."""
    fault = outcome.keeper.fault
    if unwritten:
        session.fail(f"results in {session.folder.name} are not complete ({unwritten})")
    if fault:
        session.fail(f"no final checkpoint ({fault})")
    if unwritten or fault:
        return 1
    if outcome.stopped_by == "interrupted":
        return cli.EXIT_INTERRUPTED
    if outcome.state.env_steps == 0:
        session.fail("no env step was trained; see the messages above")
        return 1
    return 0


def _write_report(folder: RunFolder, accuracy: Chart | None) -> None:
    """The page beside the results; they are whole without it, so a full disk ends nothing."""
    try:
        write_report(read_run(folder.path), folder.report, accuracy)
    except (OSError, UserError) as error:
        print(f"warning: no {folder.report.name}: {error}", file=sys.stderr)
