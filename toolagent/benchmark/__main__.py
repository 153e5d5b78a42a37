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

import json
import math
import sys
from pathlib import Path

import click

from toolagent import cli
from toolagent.benchmark import PIPELINE_ROWS, REFERENCES, ROWS
from toolagent.cluster.ray_session import quiet
from toolagent.errors import UserError, nearest
from toolagent.files import check_writable, write_result

_DEFAULT_ROWS = (*REFERENCES, "batched_local", "batched_runners")
_DEFAULT_RUN_ROWS = ("batched_runners", "plain_runners")


@click.command(
    epilog=cli.examples(
        "python -m toolagent.benchmark --repeats 3 --no-scaling --json figures.json"
    )
)
@click.option("--json", "json_file", metavar="FILE", type=cli.PATH, help="Write all figures there.")
@click.option(
    "--repeats", type=cli.IntRange(min=1), metavar="N", default=5, help="Blocks of each row."
)
@click.option(
    "--seconds",
    metavar="X",
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
    metavar="ROW,ROW...",
    help="Which rows; plain_local and plain_runners are without exploration.",
)
@click.option("--scaling/--no-scaling", default=True, help="Measure 1 to 16 env runners.")
@click.option("--startup/--no-startup", default=True, help="Measure the time to an update.")
@click.option("--learning", is_flag=True, help="Instead: the learning record over 20 seeds.")
@click.option("--ablations", is_flag=True, help="Instead: what each part of the run is worth.")
@click.option(
    "--peers",
    is_flag=True,
    help="Instead: recurrent PPO of other libraries on the same task, beside the default run.",
)
@click.option(
    "--peers-limit-s",
    metavar="X",
    type=cli.FloatRange(min=0, min_open=True),
    default=150.0,
    help="With --peers: seconds that each of them trains at most.",
)
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
    peers: bool,
    peers_limit_s: float,
    plot: str | None,
) -> int:
    """Measure training throughput: bare PyTorch, stock RLlib and the batched pipeline."""
    quiet()
    names = _chosen(rows, run_folder is not None)
    for flag, length in (("--seconds", seconds), ("--peers-limit-s", peers_limit_s)):
        if not math.isfinite(length):
            raise UserError(f"{flag}: {length} is no length of time")
    instead = [
        flag
        for flag, given in (
            ("--learning", learning),
            ("--ablations", ablations),
            ("--peers", peers),
        )
        if given
    ]
    if len(instead) > 1:
        raise UserError(f"{instead[1]}: can't be given with {instead[0]}")
    for flag, value in (("--rows", rows), ("--run", run_folder)):
        if value is not None and instead:
            raise UserError(f"{flag}: can't be given with {instead[0]}")
    if plot is not None and not learning:
        raise UserError("--plot: only with --learning")
    if plot is not None and Path(plot).suffix.lower() != ".png":
        raise UserError(f"--plot {plot}: expected the name of a PNG, such as record.png")
    for flag, file in (("--json", json_file), ("--plot", plot)):
        if file is not None:
            check_writable(Path(file), flag)
    console = cli.console()
    if peers:
        from toolagent.benchmark.peers import PEERS
        from toolagent.benchmark.peers.table import check_installed, measure_peers
        from toolagent.benchmark.peers.table import print_peers as show
        from toolagent.benchmark.progress import BenchmarkProgress

        check_installed()
        with BenchmarkProgress(console, 1 + len(PEERS)) as progress:
            result = measure_peers(peers_limit_s, progress.announce)
    elif learning or ablations:
        from toolagent.benchmark.learning import (
            ABLATION_SEEDS,
            ABLATIONS,
            RECORD_SEEDS,
            measure_learning,
        )
        from toolagent.benchmark.learning import print_learning as show
        from toolagent.benchmark.progress import BenchmarkProgress

        steps = len(ABLATIONS) * len(ABLATION_SEEDS) if ablations else len(RECORD_SEEDS)
        with BenchmarkProgress(console, steps) as progress:
            result = measure_learning(ablations, Path(plot) if plot else None, progress.announce)
    else:
        import torch

        from toolagent.models.allocation import tune_allocation

        # As `run` does, for the bare loop too: one thread, for networks so small, and memory that
        # is neither given back between iterations nor filled.
        torch.set_num_threads(1)
        tune_allocation()
        from toolagent.benchmark.measure import measure_throughput
        from toolagent.benchmark.progress import BenchmarkProgress
        from toolagent.benchmark.report import print_benchmark as show

        run = None
        if run_folder is not None:
            from toolagent.benchmark.trained_run import TrainedRun

            run, scaling, startup = TrainedRun.read(Path(run_folder)), False, False
        with BenchmarkProgress(console, 1 + repeats + startup + 5 * scaling) as progress:
            result = measure_throughput(names, run, repeats, seconds, scaling, startup, progress)
        result["run"] = None if run is None else run.record()
        result["options"] = {"repeats": repeats, "seconds": seconds, "rows": list(names)}
    if json_file is not None:
        write_result(Path(json_file), (json.dumps(result, indent=2) + "\n").encode())
    show(console, result)
    if json_file is None:
        cli.check_printed("write it to a file with --json")
    return 0


def _chosen(text: str | None, of_run: bool) -> tuple[str, ...]:
    if text is None:
        return _DEFAULT_RUN_ROWS if of_run else _DEFAULT_ROWS
    names = [name.strip() for name in text.split(",") if name.strip()]
    possible = tuple(PIPELINE_ROWS) if of_run else ROWS
    for name in names:
        if name not in ROWS:
            raise UserError(f"--rows: no row '{name}'; {nearest(name, possible)}")
        if name not in possible:
            raise UserError(
                f"--rows: '{name}' is no row of a run; with --run choose from {', '.join(possible)}"
            )
    if not names:
        raise UserError(f"--rows: names none; choose from {', '.join(possible)}")
    return tuple(name for name in ROWS if name in names)


if __name__ == "__main__":
    sys.exit(cli.main(command))
