"""Shows what a checkpoint's greedy agent does on one problem, and why it is right or wrong.

python -m toolagent.explain CHECKPOINT [--stage S] [--digits 3,4,5,6,7 | --expression "(3+4)*2"]
    [--probes] [--html FILE] [--parquet FILE] [--json FILE]
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table

from toolagent import cli
from toolagent.checkpoints.policy import load_policy
from toolagent.errors import UserError
from toolagent.explain import views
from toolagent.explain.microscope import Look, look_at, record
from toolagent.explain.probes import ProbeReport, run_probes
from toolagent.files import check_writable, write_result
from toolagent.rollouts.trajectory import Trajectory, probability_text, trajectory, verdict
from toolagent.tasks import TASKS, Task
from toolagent.tasks.oracle import shortest_programs


def problem_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for each way in which a task is posed (`Task.posed_by`)."""
    for flag in reversed(dict.fromkeys(task.posed_by for task in TASKS.values())):
        posed = [task for task in TASKS.values() if task.posed_by == flag]
        command = click.option(
            f"--{flag}",
            metavar="A,B,..." if len(posed[0].problem_columns) > 1 else "TEXT",
            help=f"The problem, for {' or '.join(task.name for task in posed)}. "
            "Default: an example, of the stage if one is named.",
        )(command)
    return command


@click.command()
@click.argument("checkpoint", type=cli.PATH)
@click.option("--stage", type=cli.IntRange(), metavar="S", help="A problem of this stage.")
@problem_flags
@click.option("--probes", is_flag=True, help="Measure what the hidden state holds: some seconds.")
@click.option("--html", "html_file", metavar="FILE", type=cli.PATH, help="Also write it as a page.")
@click.option(
    "--parquet", "parquet_file", metavar="FILE", type=cli.PATH, help="Also write a row a step."
)
@click.option("--json", "json_file", metavar="FILE", type=cli.PATH, help="Also write all of it.")
def command(
    checkpoint: str,
    stage: int | None,
    probes: bool,
    html_file: str | None,
    parquet_file: str | None,
    json_file: str | None,
    **texts: str | None,
) -> None:
    """Explain what CHECKPOINT's greedy agent does on one problem, and why the answer is right or
    wrong.

    CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint).
    """
    named = {"--html": html_file, "--parquet": parquet_file, "--json": json_file}
    files = [Path(file) for file in named.values() if file is not None]
    for flag, file in named.items():
        if file is not None:
            check_writable(Path(file), flag)
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise UserError("--html, --parquet and --json: name a file for each")
    policy = load_policy(checkpoint)
    for file in files:
        policy.check_outside(file)
    task = policy.task
    torch.set_num_threads(1)  # one problem
    problems = pose(task, stage, **texts)
    recorded = trajectory(policy.network, task, problems)
    heading = f"stage {recorded.stage}: {task.describe(problems, 0)}"
    notes = [
        f"{reason}: training drew no such problem"
        for reason in untrained(task, problems, policy.metadata.get("trained_stages"))
    ]
    told = [verdict(recorded)]
    if task.one_plan_a_stage:
        told.append(comparison(task, recorded))
    else:
        told += judgement(recorded, task.plan(problems, 0)).splitlines()
    looks = look_at(policy.network, task, problems, recorded)
    report = run_probes(policy.network, task) if probes else None
    shown = f"task {task.name}, checkpoint {cli.one_line(policy.place)}"

    about = {
        "task": task.name,
        "checkpoint": str(policy.place),
        "stage": recorded.stage,
        "problem": recorded.problem,
        "target": recorded.target,
    }
    if html_file is not None:
        page = views.page(heading, [*notes, *told], looks, report, shown, task.vocabulary)
        write_result(Path(html_file), page.encode())
    if parquet_file is not None:
        rows = [about | record(look, task.vocabulary) for look in looks]
        with pa.BufferOutputStream() as stream:
            pq.write_table(pa.Table.from_pylist(rows, schema(looks)), stream, compression="zstd")
            write_result(Path(parquet_file), stream.getvalue().to_pybytes())
    if json_file is not None:
        document = json_document(about, recorded, told, looks, report)
        write_result(Path(json_file), (json.dumps(document, indent=1) + "\n").encode())

    console = cli.console()
    console.print("\n".join([shown, heading, *notes, ""]), soft_wrap=True)
    cli.print_table(console, step_table(recorded))
    console.print("\n" + "\n".join(told), soft_wrap=True)
    console.print("\nwhat each token was chosen from, in per cent:")
    cli.print_table(console, views.probability_table(looks, task.vocabulary))
    console.print(
        "\nwhat the oracle would write, with how many tokens to go; and what the\n"
        "runner-up in this place would have led to:",
    )
    cli.print_table(console, views.futures_table(looks, task.vocabulary))
    if report is not None:
        console.print("\nwhat can be told from the hidden state, and from the controls:")
        cli.print_table(console, views.probe_table(report))
        for note in report.notes:
            console.print(note, soft_wrap=True)
    if not files:
        cli.check_printed("write it to a file with --json")


def schema(looks: list[Look]) -> pa.Schema:
    """Of `--parquet`: a row a step; what the problem is stands in every row."""
    texts, integers, numbers = pa.string(), pa.int64(), pa.list_(pa.float32())
    kinds = {"stack": texts}
    registers = pa.struct([(name, kinds.get(name, integers)) for name in looks[0].step.registers])
    return pa.schema(
        {
            "task": texts,
            "checkpoint": texts,
            "stage": integers,
            "problem": texts,
            "target": integers,
            "step": integers,
            "token": texts,
            "probability": pa.float32(),
            "probabilities": numbers,
            "value": pa.float32(),
            "reward": pa.float64(),
            "registers": registers,
            "oracle": pa.list_(texts),
            "runner_up": texts,
            "runner_up_probability": pa.float32(),
            "instead_tokens": pa.list_(texts),
            "instead_answer": integers,
            "instead_solved": pa.bool_(),
            "hidden": numbers,
        }
    )


def json_document(
    about: dict[str, Any],
    recorded: Trajectory,
    told: list[str],
    looks: list[Look],
    report: ProbeReport | None,
) -> dict[str, Any]:
    """All that is known of the episode; numbers that are not finite are null."""
    document = about | {
        "answer": recorded.answer,
        "solved": recorded.solved,
        "verdict": told,
        "tokens": list(recorded.vocabulary.actions),
        "steps": [record(look, recorded.vocabulary) for look in looks],
    }
    if report is not None:
        document["probes"] = [vars(probe) for probe in report.probes]
        document["probe_notes"] = report.notes
    return _finite(document)


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pose(task: Task, stage: int | None, **texts: str | None) -> Any:
    """The one problem that the command line asks for.

    Args:
        task: the task.
        stage: of the problem, if one is named.
        texts: the problem, by the flag that it was given with.

    Raises:
        UserError: no such stage, or not what poses a problem of it.
    """
    for flag, text in texts.items():
        if text is not None and flag != task.posed_by:
            raise UserError(f"--{flag}: task '{task.name}' is posed by --{task.posed_by}")
    if stage is not None and stage not in task.stages:
        raise UserError(
            f"--stage: task '{task.name}' has no stage {stage}; "
            f"its stages are {task.stages[0]}..{task.stages[-1]}"
        )
    if texts[task.posed_by] is None:
        return task.example(stage)
    if len(task.problem_columns) > 1:
        stage = task.stages[-1] if stage is None else stage
        given: Any = _parse_digits(str(texts[task.posed_by]), task, stage)
    else:
        given = texts[task.posed_by]
    try:
        return task.pose(None if stage is None else np.array([stage]), **{task.posed_by: [given]})
    except ValueError as error:
        raise UserError(f"--{task.posed_by}: {error}") from None


def untrained(task: Task, problems: Any, trained_stages: list[int] | None) -> list[str]:
    """In what the one problem differs from those that the agent was trained on."""
    stage, split = int(problems.stage[0]), int(task.split_of(problems)[0])
    reasons = []
    if trained_stages is not None and stage not in trained_stages:
        reasons.append(task.formula(stage) or f"stage {stage}")
    if split > 0:  # training draws from the first
        reasons.append(cli.words(task.splits[split]))
    return reasons


def step_table(recorded: Trajectory) -> Table:
    """A row for each action, a column for each register."""
    registers, names = list(recorded.steps[0].registers), recorded.vocabulary.names
    table = cli.table(
        "step",
        "token",
        "prob",
        "runner-up",
        "value",
        *registers,
        "reward",
        right=("step", "prob", "value", *registers, "reward"),
    )
    for number, step in enumerate(recorded.steps, start=1):
        runner_up = probability_text(step.runner_up_probability, 3)
        table.add_row(
            str(number),
            names[step.token],
            probability_text(step.probability, 3),
            f"{names[step.runner_up]:<3} {runner_up}",
            f"{step.value:.2f}",
            *("-" if value is None else str(value) for value in step.registers.values()),
            f"{step.reward:.2f}",
        )
    return table


def comparison(task: Task, recorded: Trajectory) -> str:
    """The agent's program beside the shortest one that solves every problem of the stage."""
    programs = shortest_programs(task, recorded.stage)
    if not programs:
        return f"no program of up to {task.max_actions} tokens solves every problem of this stage"
    if recorded.tokens in programs:
        return "its program is the shortest that solves every problem of this stage"
    return f"shortest program for every problem of this stage: {task.vocabulary.text(programs[0])}"


def judgement(recorded: Trajectory, plan: tuple[int, ...] | None) -> str:
    """What the program computes, and beside it the shortest one that solves the problem."""
    lines = []
    if recorded.computes is not None:
        told = [
            f"{cli.words(name)}: {'yes' if right else 'no'}"
            for name, right in recorded.judged.items()
        ]
        judged = f"; {', '.join(told)}" if told else ""
        lines.append(f"its program computes {recorded.computes}{judged}")
    if plan is not None:
        lines.append(f"shortest program: {recorded.vocabulary.text(plan)}")
    return "\n".join(lines)


def _parse_digits(text: str, task: Task, stage: int) -> list[int]:
    """All digits, 0 for those that the stage does not show."""
    cells = [cell.strip() for cell in text.split(",")]
    for cell in cells:
        if cell not in set("0123456789"):
            raise UserError(
                f"--{task.posed_by}: '{cell:.20}' is no digit; expected 0 to 9, such as 3,4,5,6,7"
            )
    shown, every = len(task.shown_columns(stage)), len(task.problem_columns)
    if len(cells) not in (shown, every):
        raise UserError(
            f"--{task.posed_by}: {len(cells)} digits; stage {stage}, {task.formula(stage)}, "
            f"shows {shown}" + (f" (or give all {every})" if shown != every else "")
        )
    return [int(cell) for cell in cells] + [0] * (every - len(cells))


if __name__ == "__main__":
    sys.exit(cli.main(command))
