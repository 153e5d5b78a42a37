"""Measures the rows in turns, and works out what follows from their figures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolagent.benchmark import PIPELINE_ROWS
from toolagent.benchmark.constants import fragment_transfer_s, scale_on_paper, weight_broadcast
from toolagent.benchmark.figures import (
    Block,
    add_ratios,
    row_figures,
    time_split,
    total,
    what_limits,
)
from toolagent.benchmark.progress import BenchmarkProgress
from toolagent.benchmark.rows import BareRow, RLlibRow, Row, shipped_config
from toolagent.benchmark.scaling import measure_scaling
from toolagent.benchmark.startup import measure_startup
from toolagent.cluster.ray_session import ray_session

if TYPE_CHECKING:
    from toolagent.benchmark.trained_run import TrainedRun


def measure_throughput(
    names: Sequence[str],
    run: TrainedRun | None,
    repeats: int,
    seconds: float,
    scaling: bool,
    startup: bool,
    progress: BenchmarkProgress,
) -> dict[str, Any]:
    """All figures, for JSON.

    Args:
        names: of the rows.
        run: whose configuration and weights are measured; None: the shipped configurations.
        repeats: blocks of each row.
        seconds: least length of a block.
        scaling: measure 1 to 16 env runners too.
        startup: measure the time to the first update too.
        progress: is told what is going on.

    Raises:
        UserError: the run's configuration can't be that of a row.
    """
    result: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    if startup:
        progress.announce("start-up")
        result["startup"] = measure_startup()
    rows: list[Row] = []
    if "bare_loop" in names:
        rows.append(BareRow())  # before Ray is in this process, so that its memory is its own
        rows[0].warm_up(seconds / 2)
    configs = {name: _config(name, run) for name in names if name != "bare_loop"}
    with contextlib.ExitStack() as stack:
        cpus = 0.0
        if configs or scaling:
            document = run.settings.document() if run else None
            session = ray_session(None, dashboard=False, document=document)
            cpus = stack.enter_context(session).cpus
        with contextlib.ExitStack() as closing:
            progress.announce("building and warming up")
            for name, config in configs.items():
                # Rows with actors live side by side: each may ask for a part of the CPUs.
                share = cpus / len(configs)
                row = RLlibRow(name, config, share) if run is None else run.row(name, config, share)
                closing.callback(row.close)
                row.warm_up(seconds / 2)
                rows.append(row)
            blocks = _measure_in_turns(rows, repeats, seconds, progress)
            result["rows"] = [row_figures(name, blocks[name]) for name in blocks]
            add_ratios(result["rows"], blocks)
            pipeline = [row for row in rows if row.name in PIPELINE_ROWS]
            result |= _pipeline_figures(pipeline, blocks, result["rows"])
        if scaling:
            result["scaling"] = measure_scaling(
                cpus, max(2, repeats // 2), seconds / 2, progress.announce
            )
    from toolagent.run.environment import describe_environment

    here = describe_environment()
    versions = {"python": here["python"], **here["packages"]}
    return result | {"cores": here["cores"], "versions": versions, "commit": here["commit"]}


def _config(name: str, run: TrainedRun | None) -> Any:
    if run is not None:
        return run.config(name)
    if name == "stock_rllib":
        return shipped_config("ppo", ())
    return shipped_config("default", PIPELINE_ROWS[name])


def _measure_in_turns(
    rows: Sequence[Row], repeats: int, seconds: float, progress: BenchmarkProgress
) -> dict[str, list[Block]]:
    """The blocks of each row."""
    ids = {row.name: row.process_ids() for row in rows}
    blocks: dict[str, list[Block]] = {row.name: [] for row in rows}
    for repeat in range(repeats):
        progress.announce(f"round {repeat + 1} of {repeats}: {', '.join(ids)}")
        for row in rows:
            others = [pid for name in ids if name != row.name for pid in ids[name]]
            blocks[row.name].append(row.block(seconds, others))
    return blocks


def _pipeline_figures(
    rows: Sequence[Any], blocks: Mapping[str, Sequence[Block]], figures: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Adds to the figures of these rows, which are of the batched pipeline, what only they have;
    returns what follows from several of them."""
    if not rows:
        return {}
    algorithm = rows[-1].algorithm
    broadcast = weight_broadcast(algorithm)
    transfer_s = fragment_transfer_s(
        algorithm.config.env_config["task"], algorithm.config.num_envs_per_env_runner
    )
    by_name = {entry["name"]: entry for entry in figures}
    sums = {row.name: total(blocks[row.name]) for row in rows}
    for row in rows:
        by_name[row.name] |= {
            "time_split": time_split(sums[row.name], row.num_env_runners, transfer_s),
            "dropped_episodes": int(sums[row.name]["dropped_episodes"]),
            **row.more_figures(sums[row.name]),
        }
    found: dict[str, Any] = {}
    if "batched_runners" in sums:
        name, why = what_limits(by_name["batched_runners"]["time_split"])
        found["limits"] = {"by": name, "why": why}
    if {"batched_local", "batched_runners"} <= set(sums):
        found["scale"] = scale_on_paper(sums["batched_local"], sums["batched_runners"], broadcast)
    return found
