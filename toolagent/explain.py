"""Shows what a checkpoint's greedy agent does on one problem, and why it is right or wrong.

python -m toolagent.explain CHECKPOINT [--stage S] [--digits 3,4,5,6,7 | --expression "(3+4)*2"]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from rich.table import Table

from toolagent import cli
from toolagent.errors import UserError
from toolagent.policy import load_policy
from toolagent.rollouts.trajectory import Trajectory, probability_text, trajectory, verdict
from toolagent.tasks import TASKS, Task
from toolagent.tasks.oracle import shortest_programs
from toolagent.tokens import TOKEN_NAMES, names


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
@click.argument("checkpoint")
@click.option("--stage", type=int, metavar="S", help="A problem of this stage.")
@problem_flags
def command(checkpoint: str, stage: int | None, **texts: str | None) -> None:
    """Explain what CHECKPOINT's greedy agent does on one problem, and why the answer is right or
    wrong.

    CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint).
    """
    policy = load_policy(checkpoint)
    task = policy.task
    torch.set_num_threads(1)  # one problem
    problems = pose(task, stage, **texts)
    recorded = trajectory(policy.network, task, problems)
    console = cli.console()
    console.print(
        f"task {task.name}, checkpoint {cli.one_line(policy.folder)}\n"
        f"stage {recorded.stage}: {task.describe(problems, 0)}",
        soft_wrap=True,
    )
    for reason in untrained(task, problems, policy.metadata.get("trained_stages")):
        console.print(f"{reason}: training drew no such problem")
    console.print()
    cli.print_table(console, step_table(recorded))
    console.print(f"\n{verdict(recorded)}", soft_wrap=True)
    if task.one_plan_a_stage:
        text = comparison(task, recorded)
    else:
        text = judgement(recorded, task.plan(problems, 0))
    if text:
        console.print(text, soft_wrap=True)


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
        reasons.append(task.formula(stage))
    if split > 0:  # training draws from the first
        reasons.append(cli.words(task.splits[split]))
    return reasons


def step_table(recorded: Trajectory) -> Table:
    """A row for each action, a column for each register."""
    registers = list(recorded.steps[0].registers)
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
            TOKEN_NAMES[step.token],
            probability_text(step.probability, 3),
            f"{TOKEN_NAMES[step.runner_up]:<3} {runner_up}",
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
    return f"shortest program for every problem of this stage: {names(programs[0])}"


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
        lines.append(f"shortest program: {names(plan)}")
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
