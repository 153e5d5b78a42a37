"""One run on a cluster that is up, from its folder to its report."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from toolagent import cli
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.training_state import restore_checkpoint
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_internals import spread_env_runners
from toolagent.cluster.ray_session import Cluster, quiet
from toolagent.config import (
    Settings,
    add_callbacks,
    config_sha256,
    documents,
    resolve_resources,
    to_yaml,
)
from toolagent.config.placement import check_placement, with_auto_runners
from toolagent.errors import UserError
from toolagent.report.charts import accuracy_charts
from toolagent.report.page import write_report
from toolagent.report.run_files import read_run
from toolagent.rollouts.stock_recorder import RecordEpisodesCallback
from toolagent.run.display import Display
from toolagent.run.environment import describe_environment
from toolagent.run.recording import described_records, finish_recording, recording_of
from toolagent.run.results import behaviour, print_report, sample_trajectories, summarize
from toolagent.run.start import Start, load_weights, state_losses, take_up
from toolagent.run.supervision import RunFailed, Supervision
from toolagent.run.training import RunState
from toolagent.trackers import Trackers
from toolagent.trackers.base import FINISHED, INTERRUPTED
from toolagent.trackers.group import result_files


def execute(
    console: Any,
    settings: Settings,
    algorithm_config: Any,
    cluster: Cluster,
    folder: RunFolder,
    start: Start,
    trackers: Trackers,
    interrupt: Interrupt,
) -> int:
    """Trains to a stop and writes everything that a run leaves.

    Args:
        console: what the user sees.
        settings: of the run.
        algorithm_config: of the settings, without what the cluster decides.
        cluster: what there is to run on.
        folder: to write to, not made yet unless the run is resumed.
        start: what it begins with.
        trackers: told of everything.
        interrupt: taking in signals.

    Returns:
        The exit code.

    Raises:
        UserError: the cluster is too small, the folder can't be written, a tracker refuses.
    """
    ray_since = time.perf_counter() if start.resumed else None
    algorithm_config, notes = _fitted(settings, algorithm_config, cluster)
    text = to_yaml(settings)
    header = "".join(f"# Here: {note}\n" for note in notes)
    # Of all that could be refused, only a tracker comes after.
    folder.make(header + text, start.resumed)
    trackers.start(
        documents.parse(text, "the configuration"), config_sha256=config_sha256(settings)
    )
    folder.add_environment(
        describe_environment(
            cluster={"cpus": cluster.cpus, "gpus": cluster.gpus, "nodes": cluster.nodes}
        )
    )
    add_callbacks(algorithm_config, [RecordEpisodesCallback])
    recording = recording_of(settings, folder.path)
    if recording is not None:
        algorithm_config.environment(env_config={"recording": recording.to_dict()})
    console.print(f"task {settings.task}, algorithm {settings.algorithm}, seed {settings.seed}")
    console.print(f"results in {folder.name}", soft_wrap=True)
    if folder.mirror is not None:
        console.print(f"until they are there, in {folder.path}", soft_wrap=True)
    if cluster.dashboard_url:
        console.print(f"Ray dashboard: http://{cluster.dashboard_url}")
    for note in notes:
        console.print(note)
    records = described_records(settings, algorithm_config)
    if records is not None:
        console.print(records, soft_wrap=True)

    state, rows = RunState(**start.state), []
    if start.resumed:
        rows = take_up(console, folder, start, state)
        trackers.go_back(state.env_steps)
    elif start.policy is not None:
        folder.note_origin(start.policy.folder)
    torch.set_num_threads(1)  # the local learner's; more than one gains nothing here

    def build() -> Any:
        with spread_env_runners():
            algorithm = algorithm_config.build_algo()
        quiet()  # RLlib has turned its loggers on again
        return algorithm

    def prepare(algorithm: Any, start: Start) -> None:
        if start.checkpoint is not None:
            restore_checkpoint(algorithm, start.checkpoint)
            state_losses(console, algorithm)
        elif start.policy is not None:
            load_weights(algorithm, start.policy)

    recorded: list[str] = []

    def finished(algorithm: Any) -> None:
        recorded.extend(finish_recording(algorithm, recording))

    with Display(console, settings.run.stop_env_steps, settings.run.stop_time_s) as display:
        supervision = Supervision(
            settings, build, prepare, finished, folder, display, trackers, interrupt, ray_since
        )
        try:
            outcome = supervision.run(start, rows)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    summary = summarize(settings, outcome, folder)
    summary["num_env_runners"] = algorithm_config.num_env_runners  # 'auto' is known only now
    samples = sample_trajectories(settings, outcome.network, outcome.task)
    unwritten = None
    try:
        folder.write_summary(summary)
        folder.write_behaviour(behaviour(outcome, samples, outcome.task))
        if outcome.rows:
            (accuracy,) = accuracy_charts([read_run(folder.path)])
            folder.learning_curve.write_bytes(accuracy.png)
    except OSError as error:  # what the run came to is on the screen all the same
        unwritten = f"{error.strerror or error}"
    _write_report(folder)
    print_report(console, settings, outcome, samples, outcome.task, folder)
    for line in recorded:
        console.print(line, soft_wrap=True)
    status = INTERRUPTED if outcome.stopped_by == "interrupted" else FINISHED
    trackers.end(status, summary, result_files(folder, outcome.keeper.last or folder.checkpoints))
    if unwritten:
        print(f"error: results in {folder.name} are not complete ({unwritten})", file=sys.stderr)
    if outcome.keeper.fault:
        print(f"error: no final checkpoint ({outcome.keeper.fault})", file=sys.stderr)
    if unwritten or outcome.keeper.fault:
        return 1
    if outcome.stopped_by == "interrupted":
        return cli.EXIT_INTERRUPTED
    if outcome.state.env_steps == 0:
        print("error: no env step was trained; see the messages above", file=sys.stderr)
        return 1
    return 0


def _fitted(settings: Settings, algorithm_config: Any, cluster: Cluster) -> tuple[Any, list[str]]:
    """The config as it fits the cluster, and a line for each thing that was changed."""
    notes = []
    if settings.auto_runners:
        algorithm_config, note = with_auto_runners(
            algorithm_config, cluster.offers, cluster.driver, cluster.joined
        )
        notes.append(note)
    algorithm_config, shared = resolve_resources(
        algorithm_config, cluster.cpus, cluster.gpus, cluster.nodes
    )
    check_placement(algorithm_config, cluster.offers, cluster.driver)
    return algorithm_config, [*notes, *shared]


def _write_report(folder: RunFolder) -> None:
    """The page beside the results; they are whole without it, so a full disk ends nothing."""
    try:
        write_report([read_run(folder.path)], folder.report)
    except (OSError, UserError) as error:
        print(f"warning: no {folder.report.name}: {error}", file=sys.stderr)
