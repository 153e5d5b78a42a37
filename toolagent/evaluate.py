"""Certifies a checkpoint: how many problems does the greedy agent solve, out of all there are?

python -m toolagent.evaluate CHECKPOINT [--problems FILE] [--json FILE]
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.table import Table

from toolagent import cli
from toolagent.errors import UserError, nearest
from toolagent.models.network import StageGRUNetwork
from toolagent.policy import load_policy, write_atomically
from toolagent.rollouts.certification import CHUNK, StageAccuracy, certify
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import answers, describe
from toolagent.tasks import Task
from toolagent.tasks.oracle import shortest_programs
from toolagent.tokens import names

DIGIT_COLUMNS = ("a", "b", "c", "d", "e")
COLUMNS = ("stage", *DIGIT_COLUMNS)


@dataclass(frozen=True)
class Answer:
    """The greedy agent's answer to one given problem."""

    problem: str  # '3*4+5'
    tokens: list[str]  # ['MUL', 'ADD', 'ANS']
    answer: int | None  # None: out of actions, or answered with an empty register
    solved: bool


@click.command()
@click.argument("checkpoint")
@click.option(
    "--problems",
    "problem_file",
    metavar="FILE",
    help="Answer these problems instead of all: CSV with the header stage,a,b,c,d,e "
    "(digits that a stage does not show may be empty).",
)
@click.option("--json", "json_file", metavar="FILE", help="Also write the result to this file.")
def command(checkpoint: str, problem_file: str | None, json_file: str | None) -> None:
    """Certify CHECKPOINT: run its greedy agent on every problem of every stage.

    CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint).
    """
    if json_file is not None:
        check_writable(Path(json_file))
    policy = load_policy(checkpoint)
    torch.set_num_threads(1)  # a second saves half a second, and loses many on a busy machine
    answered: list[Answer] | None = None
    if problem_file is None:
        stages = certify(policy.network, policy.task)
        whose = "every problem there is"
    else:
        problems = read_problems(Path(problem_file), policy.task)
        stages, answered = answer_problems(policy.network, policy.task, problems)
        whose = f"the problems in {cli.one_line(problem_file)}"
    console = cli.console()
    console.print(
        f"task {policy.task.name}, checkpoint {cli.one_line(policy.folder)}\n", soft_wrap=True
    )
    cli.print_table(console, cli.stage_table(stages, formulas(policy.task)))
    solved, total = sum(row.solved for row in stages), sum(row.problems for row in stages)
    console.print(f"\n{cli.solved_text(solved, total)} ({whose})\n", soft_wrap=True)
    if answered is None:
        cli.print_table(console, optimality_table(policy.task, stages))
    if json_file is not None:
        document = {"task": policy.task.name, "stages": [stage_record(row) for row in stages]}
        if answered is not None:
            document["answers"] = [vars(answer) for answer in answered]
        _write(Path(json_file), _json_text(document).encode())


def optimality_table(task: Task, stages: Iterable[StageAccuracy]) -> Table:
    """How long the agent's right programs are, beside the shortest plan that solves the stage.

    The plans come from an exhaustive search (`tasks.oracle`); the agent knows nothing of them.
    """
    table = cli.table(
        "stage",
        "shortest plan",
        "its length",
        "agent's mean",
        "solved at it",
        right=("its length", "agent's mean", "solved at it"),
    )
    for row in stages:
        plans = shortest_programs(task, row.stage)
        mean = sum(length * count for length, count in enumerate(row.solved_in))
        best = row.solved_in[len(plans[0])] if plans else 0
        table.add_row(
            str(row.stage),
            names(plans[0]) if plans else "none exists",
            str(len(plans[0])) if plans else "-",
            f"{mean / row.solved:.2f}" if row.solved else "-",
            cli.accuracy_text(best, row.problems) if plans else "-",
        )
    return table


def read_problems(file: Path, task: Task) -> Any:
    """The problems of a CSV file, in its order.

    Raises:
        UserError: the file, or a line of it, is not as it should be.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"problem file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    stages, digits = [], []
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            cells = [cell.strip() for cell in row]
            if cells in ([], [""]):  # a blank line
                continue
            if columns is None:
                columns = _check_header(where, cells)
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{where}: {len(cells)} values; expected {len(columns)}: {','.join(columns)}"
                )
            stage, five = _parse_row(where, dict(zip(columns, cells, strict=True)), task)
            stages.append(stage)
            digits.append(five)
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not CSV ({error})") from error
    if columns is None:
        raise UserError(f"{file}, line 1: empty; expected the header {','.join(COLUMNS)}")
    if not stages:
        raise UserError(f"{file}, line {reader.line_num + 1}: no problem after the header")
    return task.pose(np.array(stages), digits=np.array(digits))


def answer_problems(
    network: StageGRUNetwork, task: Task, problems: Any
) -> tuple[list[StageAccuracy], list[Answer]]:
    """Plays the given problems greedily.

    Returns:
        One count for each stage that occurs, and one answer a problem in their order.
    """
    answered: list[Answer] = []
    for start in range(0, len(problems), CHUNK):
        part = problems.take(np.arange(start, min(start + CHUNK, len(problems))))
        batch = play(network, task, part)
        for row, answer in enumerate(answers(task, part, batch)):
            program = batch.actions[row, : batch.lengths[row]]
            answered.append(
                Answer(
                    problem=describe(task, part, row)[1],
                    tokens=names(program).split(),
                    answer=answer,
                    solved=bool(batch.solved[row]),
                )
            )
    solved = np.array([answer.solved for answer in answered])
    stages = [
        StageAccuracy(
            int(stage),
            int((problems.stage == stage).sum()),
            int(solved[problems.stage == stage].sum()),
        )
        for stage in np.unique(problems.stage)
    ]
    return stages, answered


def stage_record(row: StageAccuracy) -> dict[str, int | float]:
    """A stage's count as the JSON files hold it."""
    return {
        "stage": row.stage,
        "problems": row.problems,
        "solved": row.solved,
        "accuracy": row.accuracy,
    }


def formulas(task: Task) -> list[str]:
    """What the problems of each stage are: ['a*b+c', ...]."""
    return [describe(task, task.problems(s, 0, 1), 0)[0] for s in range(task.num_stages)]


def check_writable(file: Path) -> None:
    """Refuses, before any work is done, a file that could not be written.

    Raises:
        UserError: its folder is missing or not writable, or it is a folder itself.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; expected the name of a file to write")
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file}: there is no folder '{file.parent}'")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"cannot write {file}: permission denied")


def _check_header(where: str, cells: list[str]) -> list[str]:
    for cell in cells:
        if cell not in COLUMNS:
            raise UserError(f"{where}: unknown column '{cell:.40}'; {nearest(cell, COLUMNS)}")
        if cells.count(cell) > 1:
            raise UserError(f"{where}: column '{cell}' occurs {cells.count(cell)} times")
    for column in COLUMNS:
        if column not in cells:
            raise UserError(
                f"{where}: no column '{column}'; expected the header {','.join(COLUMNS)}"
            )
    return cells


def _parse_row(where: str, row: dict[str, str], task: Task) -> tuple[int, list[int]]:
    """One problem: its stage and its five digits, 0 for those left empty."""
    known = [str(stage) for stage in range(task.num_stages)]
    if row["stage"] not in known:
        raise UserError(
            f"{where}: stage is '{row['stage']:.20}'; "
            f"task '{task.name}' has stages {_listed(known)}"
        )
    stage = int(row["stage"])
    shown = DIGIT_COLUMNS[: 3 + stage]
    digits = []
    for column in DIGIT_COLUMNS:
        cell = row[column]
        if cell == "" and column in shown:
            raise UserError(f"{where}: {column} is empty; stage {stage} shows {_listed(shown)}")
        if cell != "" and cell not in set("0123456789"):
            raise UserError(f"{where}: {column} is '{cell:.20}'; expected a digit, 0 to 9")
        digits.append(int(cell or 0))
    return stage, digits


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _json_text(document: dict[str, Any]) -> str:
    """JSON with one line for each entry of a list, as a person would compare two such files."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list):
            entries = ",\n".join(f"    {json.dumps(entry)}" for entry in value)
            text = f"[\n{entries}\n  ]"
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _write(file: Path, data: bytes) -> None:
    """Atomically, unless the name is a link or a device, which is to stay what it is."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        file.write_bytes(data)
    else:
        write_atomically(file, data)


if __name__ == "__main__":
    sys.exit(cli.main(command))
