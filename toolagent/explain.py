"""Shows what a checkpoint's greedy agent does on one problem, and why it is right or wrong.

python -m toolagent.explain CHECKPOINT [--stage S] [--digits 3,4,5,6,7]
"""

from __future__ import annotations

import sys
from typing import Any

import click
import numpy as np
import torch
from rich.table import Table

from toolagent import cli
from toolagent.errors import UserError
from toolagent.policy import load_policy
from toolagent.rollouts.trajectory import Trajectory, probability_text, trajectory, verdict
from toolagent.tasks import Task
from toolagent.tasks.arithmetic import FORMULAS, NUM_DIGITS, ArithmeticTask
from toolagent.tasks.oracle import shortest_programs
from toolagent.tokens import TOKEN_NAMES, names


@click.command()
@click.argument("checkpoint")
@click.option("--stage", type=int, metavar="S", help="Default: the last stage.")
@click.option(
    "--digits",
    metavar="A,B,C,...",
    help="The problem's digits. Default: 3,4,5,6,7 as far as shown.",
)
@click.option("--expression", metavar="TEXT", help="The problem, for a task of expressions.")
def command(checkpoint: str, stage: int | None, digits: str | None, expression: str | None) -> None:
    """Explain what CHECKPOINT's greedy agent does on one problem, and why the answer is right or
    wrong.

    CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint).
    """
    policy = load_policy(checkpoint)
    task = policy.task
    torch.set_num_threads(1)  # one problem
    if expression is not None:
        raise UserError(f"--expression: task '{task.name}' is posed by --digits")
    problems = pose(task, task.num_stages - 1 if stage is None else stage, digits)
    recorded = trajectory(policy.network, task, problems)
    console = cli.console()
    console.print(
        f"task {task.name}, checkpoint {cli.one_line(policy.folder)}\n"
        f"stage {recorded.stage}: {task.describe(problems, 0)}\n",
        soft_wrap=True,
    )
    cli.print_table(console, step_table(recorded))
    console.print(f"\n{verdict(recorded)}\n{comparison(task, recorded)}", soft_wrap=True)


def pose(task: Task, stage: int, digits: str | None) -> Any:
    """The one problem that the command line asks for.

    Raises:
        UserError: no such stage, or not the digits that it needs.
    """
    if not isinstance(task, ArithmeticTask):
        raise UserError(f"task '{task.name}' is not posed by --digits")
    if not 0 <= stage < task.num_stages:
        raise UserError(
            f"--stage: task '{task.name}' has no stage {stage}; "
            f"its stages are 0..{task.num_stages - 1}"
        )
    shown = 3 + stage
    five = [3, 4, 5, 6, 7] if digits is None else _parse_digits(digits, stage, shown)
    five += [0] * (NUM_DIGITS - len(five))
    return task.pose(np.array([stage]), digits=np.array([five]))


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


def _parse_digits(text: str, stage: int, shown: int) -> list[int]:
    cells = [cell.strip() for cell in text.split(",")]
    for cell in cells:
        if cell not in set("0123456789"):
            raise UserError(
                f"--digits: '{cell:.20}' is no digit; expected 0 to 9, such as 3,4,5,6,7"
            )
    if len(cells) not in (shown, NUM_DIGITS):
        raise UserError(
            f"--digits: {len(cells)} digits; stage {stage}, {FORMULAS[stage]}, shows {shown}"
            + (f" (or give all {NUM_DIGITS})" if shown != NUM_DIGITS else "")
        )
    return [int(cell) for cell in cells]


if __name__ == "__main__":
    sys.exit(cli.main(command))
