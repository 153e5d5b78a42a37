"""Measures training throughput side by side: `python -m toolagent.benchmark`.

Every row trains from scratch on one fixed mix of the calculator's stages (stage 2, three tenths
from stages 0 and 1), without a curriculum and **with learning rate 0**: gradients, clipping and
Adam's step are computed as ever, but the weights stay what they were. An agent that learns plays
shorter episodes, so a row that learns faster, or is measured later, would do other work than its
neighbours; this way all of them play episodes of the same mean length (it is in the table), about
that of a fresh network.

The rows take turns, block by block, so a noise of the machine hits all of them; the table shows
the median of the blocks, the ratios are medians of the ratios within a turn. A warm-up block of
each row is not counted. *Steps/s* are env steps sampled and learned from, divided by wall time.

With `--run DIR` the rows are those of a finished run: its task and configuration on the stages of
its curriculum's last level, and its trained weights, which stay because of learning rate 0. Here
the `batched` rows explore and replay as configured, without end (a fresh network's explorers may
find nothing to replay), and the `plain` rows do neither.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from toolagent import cli
from toolagent.cluster.ray_session import quiet, ray_session
from toolagent.errors import UserError, nearest
from toolagent.files import check_writable, write_result

# `toolagent.benchmark.rows.ROWS`, which can't be imported before `quiet()`.
_DEFAULT_ROWS = ("bare_loop", "stock_rllib", "batched_local", "batched_runners")
_ROWS = (*_DEFAULT_ROWS, "plain_local", "plain_runners")
_DEFAULT_RUN_ROWS = ("batched_runners", "plain_runners")
_RUN_ROWS = tuple(name for name in _ROWS if name not in ("bare_loop", "stock_rllib"))

RowMaker = Callable[[float], Any]  # from the CPUs that its actors may ask for to a row

_BUSY = 0.5  # load per core from which the figures are not to be trusted


@click.command()
@click.option("--json", "json_file", metavar="FILE", type=cli.PATH, help="Write all figures there.")
@click.option("--repeats", type=cli.IntRange(min=1), default=5, help="Blocks of each row.")
@click.option(
    "--seconds",
    type=cli.FloatRange(min=0, min_open=True),
    default=2.5,
    help="Least length of a block.",
)
@click.option(
    "--run",
    "run_folder",
    metavar="DIR",
    type=cli.PATH,
    help="The configuration and the trained weights of the run in DIR; rows only.",
)
@click.option(
    "--rows",
    metavar="A,B",
    help="Which rows; plain_local and plain_runners are without exploration.",
)
@click.option("--scaling/--no-scaling", default=True, help="Measure 1 to 16 env runners.")
@click.option("--startup/--no-startup", default=True, help="Measure the time to an update.")
@click.option("--learning", is_flag=True, help="Instead: the learning record over 20 seeds.")
@click.option("--ablations", is_flag=True, help="Instead: what each part of the run is worth.")
@click.option("--plot", metavar="FILE", type=cli.PATH, help="With --learning: a PNG of the record.")
def command(
    json_file: str | None,
    repeats: int,
    seconds: float,
    run_folder: str | None,
    rows: str | None,
    scaling: bool,
    startup: bool,
    learning: bool,
    ablations: bool,
    plot: str | None,
) -> int:
    """Measure training throughput: bare PyTorch, stock RLlib and the batched pipeline."""
    quiet()
    names = _chosen(rows, run_folder is not None)
    if not math.isfinite(seconds):
        raise UserError(f"--seconds: {seconds} is no length of time")
    if learning and ablations:
        raise UserError("--ablations: can't be given with --learning")
    if rows is not None and (learning or ablations):
        raise UserError("--rows: can't be given with --learning or --ablations")
    if plot is not None and not learning:
        raise UserError("--plot: only with --learning")
    if plot is not None and Path(plot).suffix.lower() != ".png":
        raise UserError(f"--plot {plot}: expected the name of a PNG, such as record.png")
    output = Path(json_file) if json_file is not None else None
    for flag, file in (("--json", json_file), ("--plot", plot)):
        if file is not None:
            check_writable(Path(file), flag)
    if learning or ablations:
        if run_folder is not None:
            raise UserError("--run: can't be given with --learning or --ablations")
        return _learning(ablations, Path(plot) if plot is not None else None, output)
    import torch

    torch.set_num_threads(1)  # as `run` does: more than one gains nothing for so small a network
    console = cli.console()
    from toolagent.benchmark.progress import BenchmarkProgress
    from toolagent.benchmark.report import print_benchmark

    if run_folder is not None:
        makers, record = _rows_of_run(run_folder, names)
        scaling = startup = False
    else:
        makers, record = _shipped_rows(names), None
    steps = 1 + repeats + startup + 5 * scaling
    with BenchmarkProgress(console, steps) as progress:
        result = _measure(names, makers, repeats, seconds, scaling, startup, progress)
    result["run"] = record
    result["options"] = {"repeats": repeats, "seconds": seconds, "rows": list(names)}
    _write(output, result)
    print_benchmark(console, result)
    if result["load_before"] > _BUSY * result["cores"]:
        console.print(
            f"\nThe machine was busy before: load {result['load_before']:.1f} on "
            f"{result['cores']} cores. Rows of several processes suffer most; measure again."
        )
    _check_printed(output)
    return 0


def _check_printed(output: Path | None) -> None:
    if output is None:
        cli.check_printed("write it to a file with --json")


def _learning(ablations: bool, plot: Path | None, output: Path | None) -> int:
    from toolagent.benchmark.learning import ABLATION_SEEDS, ABLATIONS, RECORD_SEEDS
    from toolagent.benchmark.learning_report import measure_learning, print_learning
    from toolagent.benchmark.progress import BenchmarkProgress

    console = cli.console()
    steps = len(ABLATIONS) * len(ABLATION_SEEDS) if ablations else len(RECORD_SEEDS)
    with BenchmarkProgress(console, steps) as progress:
        result = measure_learning(ablations, plot, progress)
    _write(output, result)
    print_learning(console, result["learning"], result["limit_s"])
    _check_printed(output)
    return 0


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        write_result(output, (json.dumps(result, indent=2) + "\n").encode())


def _chosen(text: str | None, of_run: bool) -> tuple[str, ...]:
    if text is None:
        return _DEFAULT_RUN_ROWS if of_run else _DEFAULT_ROWS
    names = [name.strip() for name in text.split(",") if name.strip()]
    possible = _RUN_ROWS if of_run else _ROWS
    for name in names:
        if name not in _ROWS:
            raise UserError(f"--rows: no row '{name}'; {nearest(name, possible)}")
        if name not in possible:
            raise UserError(
                f"--rows: '{name}' is no row of a run; with --run choose from {', '.join(possible)}"
            )
    if not names:
        raise UserError(f"--rows: names none; choose from {', '.join(possible)}")
    return tuple(name for name in _ROWS if name in names)


def _shipped_rows(names: Sequence[str]) -> dict[str, RowMaker]:
    from toolagent.benchmark.rows import RLLIB_ROWS, RLlibRow, shipped_config

    def make(name: str) -> RowMaker:
        return lambda cpus: RLlibRow(name, shipped_config(*RLLIB_ROWS[name]), cpus)

    return {name: make(name) for name in names if name in RLLIB_ROWS}


def _rows_of_run(
    folder: str, names: Sequence[str]
) -> tuple[Mapping[str, RowMaker], dict[str, Any]]:
    """The rows, and what is to be said about the run."""
    from toolagent.benchmark.trained_run import TrainedRun, make_rows

    run = TrainedRun.read(Path(folder))
    return make_rows(run, names), run.record()


def _measure(
    names: Sequence[str],
    makers: Mapping[str, RowMaker],
    repeats: int,
    seconds: float,
    scaling: bool,
    startup: bool,
    progress: Any,
) -> dict[str, Any]:
    result: dict[str, Any] = {"cores": _cores(), "rows": [], "load_before": os.getloadavg()[0]}
    if startup:
        from toolagent.benchmark.startup import measure_startup

        progress.announce("start-up")
        result["startup"] = measure_startup()
    bare = _warm_bare_row(seconds) if "bare_loop" in names else None
    if scaling or set(names) - {"bare_loop"}:
        with ray_session(None, dashboard=False) as cluster:
            _measure_rows(result, makers, bare, cluster.cpus, repeats, seconds, progress)
            if scaling:
                from toolagent.benchmark.scaling import measure_scaling

                result["scaling"] = measure_scaling(
                    cluster.cpus, max(2, repeats // 2), seconds / 2, progress.announce
                )
    else:
        _measure_rows(result, {}, bare, 0.0, repeats, seconds, progress)
    from toolagent.run.environment import commit_of

    return result | {"versions": _versions(), "commit": commit_of(Path(__file__).parents[1])}


def _warm_bare_row(seconds: float) -> Any:
    """Before Ray is in this process, so that its memory is its own."""
    from toolagent.benchmark.rows import BareRow

    row = BareRow()
    row.warm_up(seconds / 2)
    return row


def _measure_rows(
    result: dict[str, Any],
    makers: Mapping[str, RowMaker],
    bare: Any,
    cpus: float,
    repeats: int,
    seconds: float,
    progress: Any,
) -> None:
    """Builds, measures in turns and closes the rows; the figures go into `result`."""
    from toolagent.benchmark.constants import fragment_transfer_s, weight_broadcast
    from toolagent.benchmark.figures import add_ratios, row_figures

    progress.announce("building and warming up")
    with contextlib.ExitStack() as closing:
        rows = [bare] if bare is not None else []
        for make in makers.values():
            # Rows with actors live side by side: each may ask for a part of the CPUs.
            row = make(cpus / len(makers))
            closing.callback(row.close)
            row.warm_up(seconds / 2)
            rows.append(row)
        ids = {row.name: row.process_ids() for row in rows}
        blocks: dict[str, list[Any]] = {row.name: [] for row in rows}
        for repeat in range(repeats):
            progress.announce(f"round {repeat + 1} of {repeats}: {', '.join(ids)}")
            for row in rows:
                others = [pid for name in ids if name != row.name for pid in ids[name]]
                blocks[row.name].append(row.block(seconds, others))
        broadcast, transfer_s = {}, 0.0
        batched = [row for row in rows if row.name not in ("bare_loop", "stock_rllib")]
        if batched:
            broadcast = weight_broadcast(batched[-1].algorithm)
            config = batched[-1].algorithm.config
            transfer_s = fragment_transfer_s(
                config.env_config["task"], config.num_envs_per_env_runner
            )
    result["rows"] = [row_figures(row.name, blocks[row.name]) for row in rows]
    add_ratios(result["rows"], blocks)
    if batched:
        _add_pipeline_figures(result, batched, blocks, broadcast, transfer_s)


def _add_pipeline_figures(
    result: dict[str, Any],
    batched: Sequence[Any],
    blocks: dict[str, list[Any]],
    broadcast: dict[str, float],
    transfer_s: float,
) -> None:
    from toolagent.benchmark.constants import scale_on_paper
    from toolagent.benchmark.figures import time_split, total, what_limits

    sums = {row.name: total(blocks[row.name]) for row in batched}
    figures = {row["name"]: row for row in result["rows"]}
    for row in batched:
        figures[row.name] |= {
            "time_split": time_split(sums[row.name], row.num_env_runners, transfer_s),
            "dropped_episodes": int(sums[row.name]["dropped_episodes"]),
            **row.more_figures(sums[row.name]),
        }
    if "batched_runners" in sums:
        name, why = what_limits(figures["batched_runners"]["time_split"])
        result["limits"] = {"by": name, "why": why}
    if {"batched_local", "batched_runners"} <= set(sums):
        result["scale"] = scale_on_paper(sums["batched_local"], sums["batched_runners"], broadcast)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    packages = ("ray", "torch", "numpy", "gymnasium")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


if __name__ == "__main__":
    sys.exit(cli.main(command))
