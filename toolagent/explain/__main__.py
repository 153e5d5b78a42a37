"""Shows what a checkpoint's greedy agent does on one problem, and why it is right or wrong.

python -m toolagent.explain CHECKPOINT [--stage S] [--digits 3,4,5,6,7 | --expression "(3+4)*2"
    | --expression "3*B+C-7" --database "19 3 86 8 1 48 2 2"]
    [--task MODULE:CLASS] [--probes] [--memory] [--html FILE] [--parquet FILE] [--json FILE]
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from toolagent import cli
from toolagent.checkpoints.policy import Policy, load_policy
from toolagent.errors import UserError
from toolagent.explain import views
from toolagent.explain.memory import MemoryReport, check_memory, run_memory
from toolagent.explain.microscope import Look, look_at, record
from toolagent.explain.probes import ProbeReport, check_probes, run_probes
from toolagent.files import check_writable, write_result
from toolagent.rollouts.conversation import turns
from toolagent.rollouts.reading import stack_rows
from toolagent.rollouts.trajectory import (
    Trajectory,
    probability_text,
    trajectory,
    verdict,
)
from toolagent.tasks import TASKS, Task, task_class
from toolagent.tasks.oracle import shortest_programs
from toolagent.tasks.posing import PosingError, pose_one
from toolagent.tasks.registry import reference_of_task


class ProblemCommand(click.Command):
    """A command with a flag for each way in which a task is posed (`Task.posed_by`): the tasks
    in use, and the one that `--task` names on the command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Imports the named task first: its own flag is one of the options."""
        for place, argument in enumerate(args):
            flag, _, given = argument.partition("=")
            if flag == "--task" and (given or place + 1 < len(args)):
                task_class(given or args[place + 1])
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The flags of the tasks stand behind the argument and `--stage`."""
        first, *others = super().get_params(ctx)
        taken = {other.name for other in others} | {flag[2:] for p in others for flag in p.opts}
        flags: list[click.Parameter] = []
        posed = [task for task in TASKS.values() if task().can_be_posed]
        for name in dict.fromkeys(name for task in posed for name in task.posed_by):
            tasks = [task for task in posed if name in task.posed_by]
            fields = [field for task in tasks for field in task().fields if field.name == name]
            if not name.isidentifier() or name == first.name or name in taken:
                raise UserError(
                    f"task {reference_of_task(tasks[0])}: posed_by has '{name}', which can't be "
                    "the name of a flag here; choose another"
                )
            option = click.Option(
                [f"--{name}"],
                metavar="N,N..." if fields[0].is_list else "TEXT",
                help=f"The problem, for {' or '.join(task.name for task in tasks)}. "
                "Default: an example, of the stage if one is named.",
            )
            flags.append(option)
        return [first, others[0], *flags, *others[1:]]


@click.command(
    cls=ProblemCommand,
    epilog=cli.examples("python -m toolagent.explain runs/my-run --stage 2 --html explained.html"),
)
@click.argument("checkpoint", metavar="CHECKPOINT", type=cli.PATH)
@click.option("--stage", type=cli.IntRange(), metavar="S", help="A problem of this stage.")
@cli.code_options
@click.option("--probes", is_flag=True, help="Measure what the hidden state holds: some seconds.")
@click.option("--memory", is_flag=True, help="Exchange inner states, and lie: some seconds.")
@click.option("--html", "html_file", metavar="FILE", type=cli.PATH, help="Also write it as a page.")
@click.option(
    "--parquet", "parquet_file", metavar="FILE", type=cli.PATH, help="Also write a row a step."
)
@click.option("--json", "json_file", metavar="FILE", type=cli.PATH, help="Also write all of it.")
def command(
    checkpoint: str,
    stage: int | None,
    task: str | None,
    network: str | None,
    probes: bool,
    memory: bool,
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
    policy = load_policy(checkpoint, task=task, network=network)
    for file in files:
        policy.check_outside(file)
    if probes:
        check_probes(policy.task)
    if memory:
        check_memory(policy.task)
    explain(policy, stage, texts, probes, memory, *named.values())
    if not files:
        cli.check_printed("write it to a file with --json")


def explain(
    policy: Policy,
    stage: int | None,
    texts: Mapping[str, str | None],
    probes: bool,
    memory: bool,
    html_file: str | None,
    parquet_file: str | None,
    json_file: str | None,
) -> None:
    """Plays the problem that the command line asks for, writes the files and prints the rest.

    Args:
        policy: whose agent is explained.
        stage: of the problem, if one is named.
        texts: the problem, by the name of what poses it.
        probes: whether to measure them, too.
        memory: whether to exchange inner states, too: in all stages, or in the one that is named.
        html_file: to be written, if named; and so on.
    """
    task = policy.task
    torch.set_num_threads(1)  # one problem
    problems = pose(task, stage, texts)
    recorded = trajectory(policy.network, task, problems)
    heading = f"stage {recorded.stage}: {task.describe(problems, 0)}"
    notes = [
        f"{reason}: training drew no such problem"
        for reason in untrained(task, problems, policy.metadata.get("trained_stages"))
    ]
    told = [verdict(recorded)]
    if task.one_plan_a_stage and task.num_problems(recorded.stage) is not None:
        told.append(comparison(task, recorded))
    else:
        told += judgement(recorded, task.plan(problems, 0)).splitlines()
    looks = look_at(policy.network, task, problems, recorded)
    stack = stack_rows(policy.network, task, problems, recorded.tokens)
    report = run_probes(policy.network, task) if probes else None
    named = None if stage is None else [stage]
    remembered = run_memory(policy.network, task, named) if memory else None
    shown = f"task {task.name}, checkpoint {cli.one_line(policy.place)}"

    about = {
        "task": task.name,
        "checkpoint": str(policy.place),
        "stage": recorded.stage,
        "problem": recorded.problem,
        "target": recorded.target,
    }
    if html_file is not None:
        page = views.page(heading, [*notes, *told], looks, stack, report, remembered, shown, task)
        write_result(Path(html_file), page.encode())
    if parquet_file is not None:
        with pa.BufferOutputStream() as stream:
            pq.write_table(step_rows(about, looks, task), stream, compression="zstd")
            write_result(Path(parquet_file), stream.getvalue().to_pybytes())
    if json_file is not None:
        document = json_document(about, recorded, told, looks, report, remembered)
        if stack:
            document["stack"] = stack
        write_result(Path(json_file), (json.dumps(document, indent=1) + "\n").encode())

    console = cli.console()
    cli.say(console, "\n".join([shown, heading, *notes, ""]))
    cli.print_table(console, step_table(recorded, looks))
    cli.say(console, "\n" + "\n".join(told))
    console.print("\nwhat each token was chosen from, in per cent:")
    cli.print_table(console, views.probability_table(looks, task))
    if stack:
        console.print("\nwhat reading each token does with the stack of states, and writes:")
        cli.print_table(console, views.stack_table(stack))
    if task.defines("continuation"):
        console.print(
            "\nwhat the oracle would write, with how many tokens to go; and what the\n"
            "runner-up in this place would have led to:",
        )
    else:
        console.print("\nwhat the runner-up in this place would have led to:")
    cli.print_table(console, views.futures_table(looks, task))
    if report is not None:
        console.print("\nwhat can be told from the hidden state, and from the controls:")
        cli.print_table(console, views.probe_table(report))
        for note in report.notes:
            cli.say(console, note)
    if remembered is not None:
        print_memory(console, remembered)


def print_memory(console: Console, report: MemoryReport) -> None:
    """The tables of both experiments."""
    console.print("\nwhat decides the answer if inner states are exchanged:")
    cli.print_table(console, views.table_of(views.exchange_rows(report)))
    for note in report.notes:
        cli.say(console, note)
    if report.lies:
        console.print(
            "\nwhat is answered if one of the answers of the tools is observed off by one:"
        )
        cli.print_table(console, views.table_of(views.lie_rows(report)))


def step_rows(about: dict[str, Any], looks: list[Look], task: Task) -> pa.Table:
    """Of `--parquet`: a row a step; what the problem is stands in every row."""
    rows = [about | record(look, task) for look in looks]
    texts, integers, numbers = pa.string(), pa.int64(), pa.list_(pa.float32())
    registers = dict.fromkeys(views.register_names(looks), integers)
    for row in rows:
        is_text = {name for name, value in row["registers"].items() if isinstance(value, str)}
        registers |= dict.fromkeys(is_text | {*task.text_registers} & {*registers}, texts)
    for row in rows:
        for name, value in row["registers"].items():
            if value is not None and registers[name] == texts:
                row["registers"][name] = str(value)
    schema = {
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
        "response": pa.list_(texts),
        "copied_from": pa.struct(
            {
                "answer": integers,
                "place": integers,
                "tokens": pa.list_(texts),
                "weight": pa.float32(),
            }
        ),
        "registers": pa.struct([*registers.items()]),
        "oracle": pa.list_(texts),
        "runner_up": texts,
        "runner_up_probability": pa.float32(),
        "instead_tokens": pa.list_(texts),
        "instead_answer": integers,
        "instead_solved": pa.bool_(),
        "hidden": numbers,
    }
    if not registers:  # Parquet has no records without a field
        del schema["registers"]
    return pa.Table.from_pylist(rows, pa.schema(schema))


def json_document(
    about: dict[str, Any],
    recorded: Trajectory,
    told: list[str],
    looks: list[Look],
    report: ProbeReport | None,
    remembered: MemoryReport | None,
) -> dict[str, Any]:
    """All that is known of the episode; numbers that are not finite are null."""
    document = about | {
        "answer": recorded.answer,
        "solved": recorded.solved,
        "verdict": told,
        "tokens": list(recorded.vocabulary.actions),
        "steps": [record(look, recorded.task) for look in looks],
    }
    if recorded.task.response_length:
        names = recorded.vocabulary.names
        document["conversation"] = [
            {
                "call": [names[token] for token in recorded.tokens[turn.first : turn.last + 1]],
                "first_step": turn.first + 1,
                "answer": [names[token] for token in turn.answer],
            }
            for turn in turns(recorded.task, recorded.response[0].tolist())
        ]
    if report is not None:
        document["probes"] = [vars(probe) for probe in report.probes]
        document["probe_notes"] = report.notes
    if remembered is not None:
        document |= remembered.record()
    return _finite(document)


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pose(task: Task, stage: int | None, texts: Mapping[str, str | None]) -> Any:
    """The one problem that the command line asks for.

    Args:
        task: the task.
        stage: of the problem, if one is named.
        texts: the problem, by the name of what poses it.

    Raises:
        UserError: no such stage, or not what poses a problem of it.
    """
    for name, text in texts.items():
        if text is not None and not task.can_be_posed:
            raise UserError(
                f"{f'--{name}'}: task '{task.name}' can't be given problems: it defines no "
                "`pose`; --stage chooses an example"
            )
        if text is not None and name not in task.posed_by:
            flags = _flags(task.posed_by)
            raise UserError(f"{f'--{name}'}: task '{task.name}' is posed by {flags}")
    if stage is not None and stage not in task.stages:
        raise UserError(
            f"--stage: task '{task.name}' has no stage {stage}; "
            f"its stages are {task.stages[0]}..{task.stages[-1]}"
        )
    given = {}
    for field in task.fields if task.can_be_posed else ():
        if (text := texts.get(field.name)) is not None:
            try:
                given[field.name] = field.parse(text)
            except ValueError as error:
                raise UserError(f"{_flags([field.name])}: {error}") from None
    if not given:
        return task.example(stage)
    if stage is None and not task.problem_tells_stage:
        stage = task.stages[-1]
    try:
        return pose_one(task, stage, given)
    except PosingError as error:
        raise UserError(f"{_flags(error.names)}: {error}") from None


def _flags(names: Iterable[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


def untrained(task: Task, problems: Any, trained_stages: list[int] | None) -> list[str]:
    """In what the one problem differs from those that the agent was trained on."""
    stage, split = int(problems.stage[0]), int(task.split_of(problems)[0])
    reasons = []
    if trained_stages is not None and stage not in trained_stages:
        reasons.append(task.formula(stage) or f"stage {stage}")
    if split > 0:  # training draws from the first
        reasons.append(cli.words(task.splits[split]))
    return reasons


def step_table(recorded: Trajectory, looks: list[Look]) -> Table:
    """A row for each action, a column for each register. Where tools answer, what they answered
    and where tokens were copied from has a column, and registers are left out that would make the
    table wider than a terminal."""
    task, names = recorded.task, recorded.vocabulary.names
    steps, width = [look.step for look in looks], max(map(len, recorded.vocabulary.actions))
    runners_up = [
        f"{names[step.runner_up]:<{width}} {probability_text(step.runner_up_probability, 3)}"
        for step in steps
    ]
    columns = [
        ("step", [str(look.number) for look in looks]),
        ("token", [names[step.token] for step in steps]),
        ("prob", [probability_text(step.probability, 3) for step in steps]),
        ("runner-up", runners_up),
        ("value", [f"{step.value:.2f}" for step in steps]),
    ]
    if task.response_length:
        columns.append((views.HEARD, [views.heard(look, looks, task) for look in looks]))
    reward = ("reward", [f"{step.reward:.2f}" for step in steps])
    wide = sum(views.column_width(*column) for column in [*columns, reward])
    for name in views.register_names(looks):
        values = [step.registers.get(name) for step in steps]
        cells = ["-" if value is None else str(value) for value in values]
        wide += views.column_width(name, cells)
        if not task.response_length or wide <= views.WIDTH:
            columns.append((name, cells))
    columns.append(reward)
    left = {"token", "runner-up", views.HEARD}
    table = cli.table(*(name for name, _ in columns), right={name for name, _ in columns} - left)
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*row)
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


if __name__ == "__main__":
    sys.exit(cli.main(command))
