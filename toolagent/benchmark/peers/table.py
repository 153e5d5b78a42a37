"""The default run and the peers, one after the other, each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from toolagent import cli
from toolagent.benchmark.child import run_module
from toolagent.benchmark.learning import run_seed
from toolagent.benchmark.peers import PEERS
from toolagent.errors import UserError
from toolagent.installation import install_command

_START_LIMIT_S = 300.0  # for a child to import, build and certify, besides training


def check_installed() -> None:
    """Raises UserError where a peer's package is missing."""
    missing = [
        package for _, package, _ in PEERS.values() if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise UserError(f"--peers: {', '.join(missing)}: not installed; {install_command('peers')}")


def measure_peers(seconds: float, announce: Callable[[str], None]) -> dict[str, Any]:
    """The default run, then each of `PEERS`.

    Args:
        seconds: that each may train at most.
        announce: is told what is going on.

    Returns:
        What the table shows, for JSON. A row is that of `training.train_peer`.

    Raises:
        UserError: a child failed, with its last line of output.
    """
    load = os.getloadavg()[0]
    announce("toolagent: the default run")
    run = run_seed(0, (), seconds)
    rows: list[dict[str, Any]] = [
        {
            "name": "toolagent",
            "env_steps_per_s": run.env_steps_per_s,
            "env_steps": run.env_steps,
            "wall_time_s": run.wall_time_s,
            "solved": all(stage.solved == stage.problems for stage in run.stages),
            "stages": [
                {
                    "stage": stage.stage,
                    "problems": stage.problems,
                    "solved": stage.solved,
                    "accuracy": stage.solved / stage.problems,
                    "first_solved_env_steps": stage.first_solved_env_steps,
                    "first_solved_s": stage.first_solved_s,
                }
                for stage in run.stages
            ],
        }
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, package, title) in PEERS.items():
            announce(f"{title}: {seconds:g} s at most")
            file = Path(folder) / f"{name}.json"
            run_module(
                "toolagent.benchmark.peers", name, str(file), str(seconds),
                timeout_s=seconds + _START_LIMIT_S,
            )  # fmt: skip
            version = importlib.metadata.version(package.replace("_", "-"))
            row = json.loads(file.read_text(encoding="utf-8"))
            rows.append(row | {"package": title, "version": version})
    return {"limit_s": seconds, "load_before": load, "cores": os.cpu_count(), "peers": rows}


def print_peers(console: Console, result: dict[str, Any]) -> None:
    """Speed, and env steps and seconds until each stage was certified.

    Args:
        console: to print on.
        result: of `measure_peers`.
    """
    right = ("steps/s", "stage", "env steps", "seconds", "solved at the end")
    table = cli.table("learner", *right, right=right)
    for row in result["peers"]:
        head = (row["name"], f"{row['env_steps_per_s']:,.0f}")
        for stage in row["stages"]:
            first = (stage["first_solved_env_steps"], stage["first_solved_s"])
            figures = ("-", "-") if None in first else (f"{first[0]:,}", f"{first[1]:.1f}")
            table.add_row(*head, str(stage["stage"]), *figures, f"{stage['accuracy']:.2%}")
            head = ("", "")
    cli.print_table(console, table)
    for row in result["peers"]:
        if not row["solved"]:
            console.print(
                f"{row['name']}: not certified within {row['wall_time_s']:.0f} s and "
                f"{row['env_steps']:,} env steps",
                soft_wrap=True,
            )
    console.print(
        "env steps and seconds: until every problem of the stage was solved, of training",
        soft_wrap=True,
    )
