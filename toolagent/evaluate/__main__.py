"""Certifies a checkpoint: how many problems does the greedy agent solve, out of all there are?

python -m toolagent.evaluate CHECKPOINT [--task MODULE:CLASS] [--problems FILE] [--json FILE]
python -m toolagent.evaluate CHECKPOINT --reasoning-gym DATASET [--size N] [--seed S] [--json FILE]

`--json` writes

    {"task", "trained_stages", "stages": [{"stage", "problems", "solved", "accuracy"}]}

with `trained_stages` only if the checkpoint says them. A stage has besides

- for a task that judges programs, a share 0..1 for each judgement: `algebraically_valid`,
  `shortest`;
- for such a task, and where not all problems were played, `complete`: the problems are all there
  are. If not, they are a fixed sample of the task's first split, the only one that training draws
  from;
- a record of the same figures for each other split, such as `held_out`, where the stage has one.

With `--problems` there is `"answers": [{"problem", "tokens", "answer", "solved"}]` in the file's
order, with each judgement as a boolean, and where problems are nested (`Task.depth`)
`"depths": [{"depth", "problems", "solved", "accuracy"}]`; with `--reasoning-gym`,
`"reasoning_gym"` (`Score.record`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from toolagent import cli
from toolagent.checkpoints.policy import Policy, load_policy
from toolagent.errors import UserError
from toolagent.evaluate.documents import answer_problems, answered_file, certified, document_of
from toolagent.evaluate.reasoning_gym import DATASETS, MAX_SEED, Score, draw, score
from toolagent.files import check_writable, write_result
from toolagent.rollouts.certification import StageAccuracy
from toolagent.tasks import Task
from toolagent.tasks.oracle import shortest_programs

# What the JSON file has, and what prints the same.
Result = tuple[dict[str, Any], Callable[[Console], None]]


@click.command(epilog=cli.examples("python -m toolagent.evaluate runs/my-run --json result.json"))
@click.argument("checkpoint", metavar="CHECKPOINT", type=cli.PATH)
@cli.code_options
@click.option(
    "--problems",
    "problem_file",
    metavar="FILE",
    type=cli.PATH,
    help="Answer these problems instead of all: CSV with the task's header, such as "
    "stage,a,b,c,d,e (digits that a stage does not show may be empty) or expression.",
)
@click.option(
    "--reasoning-gym",
    "dataset",
    metavar="DATASET",
    help=f"Answer problems of the package reasoning-gym instead: {' or '.join(DATASETS)}.",
)
@click.option(
    "--size",
    type=cli.IntRange(1, 10_000),
    metavar="N",
    help="How many problems of reasoning-gym. Default: 500.",
)
@click.option(
    "--seed",
    type=cli.IntRange(0, MAX_SEED),
    metavar="S",
    help="Seed of reasoning-gym's problems. Default: 0.",
)
@click.option(
    "--json", "json_file", metavar="FILE", type=cli.PATH, help="Also write the result to this file."
)
def command(
    checkpoint: str,
    task: str | None,
    network: str | None,
    problem_file: str | None,
    dataset: str | None,
    size: int | None,
    seed: int | None,
    json_file: str | None,
) -> None:
    """Certify CHECKPOINT: run its greedy agent on every problem of every stage; where they are too
    many, on a fixed sample.

    CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint).
    """
    if json_file is not None:
        check_writable(Path(json_file), "--json")
        if problem_file is not None and _same(json_file, problem_file):
            raise UserError(f"--json {json_file}: is the file of --problems")
    if dataset is None:
        for flag, value in (("--size", size), ("--seed", seed)):
            if value is not None:
                raise UserError(f"{flag}: only with --reasoning-gym")
    elif problem_file is not None:
        raise UserError("--reasoning-gym: can't be given with --problems")
    policy = load_policy(checkpoint, task=task, network=network)
    if json_file is not None:
        policy.check_outside(Path(json_file))
    torch.set_num_threads(1)  # a second saves half a second, and loses many on a busy machine
    if problem_file is not None:
        document, show = _given(policy, problem_file)
    elif dataset is not None:
        document, show = _reasoning_gym(policy, dataset, size or 500, seed or 0)
    else:
        document, show = _certified(policy)
    if json_file is not None:  # before it is printed: who reads that may go, or be slow
        write_result(Path(json_file), _json_text(document).encode())
    show(cli.console())
    if json_file is None:
        cli.check_printed("write it to a file with --json")


def _certified(policy: Policy) -> Result:
    """Every problem there is."""
    document, stages = certified(policy)
    complete = [row for row in stages if row.complete]
    whose = "every problem there is"
    if not complete:
        whose = "a fixed sample"
    elif len(complete) < len(stages):
        whose = f"every problem of stages {', '.join(str(row.stage) for row in complete)}"

    def show(console: Console) -> None:
        _print_report(console, policy, stages, complete or stages, whose)
        if policy.task.one_plan_a_stage:
            cli.print_table(console, optimality_table(policy.task, stages))

    return document, show


def _given(policy: Policy, problem_file: str) -> Result:
    """The problems of a file."""
    document, stages = answered_file(policy, Path(problem_file))
    whose = f"the problems in {cli.one_line(problem_file)}"

    def show(console: Console) -> None:
        _print_report(console, policy, stages, stages, whose)
        if len(document.get("depths", [])) > 1:
            cli.print_table(console, depth_table(document["depths"]))

    return document, show


def _reasoning_gym(policy: Policy, dataset: str, size: int, seed: int) -> Result:
    """Problems of the package reasoning-gym."""
    task, trained = policy.task, policy.metadata.get("trained_stages")
    drawn = draw(task, dataset, size, seed)
    stages, answered = answer_problems(policy.network, task, drawn.problems)
    result = score(drawn, [answer.answer for answer in answered])

    def show(console: Console) -> None:
        _print_head(console, policy)
        cli.print_table(console, score_table(result, stages, trained))
        cli.say(console, f"\n{score_text(result)}")
        for note in cli.stage_notes(stages, trained):
            cli.say(console, note)

    return document_of(policy, stages) | {"reasoning_gym": result.record()}, show


def _print_report(
    console: Console,
    policy: Policy,
    stages: list[StageAccuracy],
    counted: Sequence[StageAccuracy],
    whose: str,
) -> None:
    """The table of the stages, and the sum of those `counted`."""
    task, trained = policy.task, policy.metadata.get("trained_stages")
    _print_head(console, policy)
    cli.print_table(console, cli.stage_table(task, stages, trained))
    console.print()
    solved, total = sum(row.solved for row in counted), sum(row.problems for row in counted)
    cli.say(console, f"{cli.solved_text(solved, total)} ({whose})")
    for note in cli.stage_notes(stages, trained):
        cli.say(console, note)
    console.print()


def _print_head(console: Console, policy: Policy) -> None:
    console.print(
        f"task {policy.task.name}, checkpoint {cli.one_line(policy.place)}\n", soft_wrap=True
    )


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
            task.vocabulary.text(plans[0]) if plans else "none exists",
            str(len(plans[0])) if plans else "-",
            f"{mean / row.solved:.2f}" if row.solved else "-",
            cli.accuracy_text(best, row.problems) if plans else "-",
        )
    return table


def depth_table(depths: Iterable[dict[str, Any]]) -> Table:
    """A row for each depth of the problems (`Task.depth`)."""
    right = ("depth", "problems", "solved", "accuracy")
    table = cli.table(*right, right=right)
    for row in depths:
        counts = row["solved"], row["problems"]
        table.add_row(
            str(row["depth"]),
            f"{row['problems']:,}",
            f"{row['solved']:,}",
            cli.accuracy_text(*counts),
        )
    return table


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def score_table(
    result: Score, stages: Sequence[StageAccuracy], trained: Container[int] | None
) -> Table:
    """The package's score by number of operands, beside what else is counted."""
    judgements = cli.judgements_of(stages)
    right = ("operands", "problems", "mean score", "accuracy", *judgements, "passed over")
    table = cli.table(*right, right=right)
    for row, of_package in zip(stages, result.operands, strict=True):
        table.add_row(
            f"{row.stage}{cli.star(row.stage, trained)}",
            f"{row.problems:,}",
            f"{of_package.mean_score:.3f}",
            cli.accuracy_text(row.solved, row.problems),
            *cli.judged_cells(row),
            f"{of_package.drawn - of_package.problems:,}",
        )
    return table


def score_text(result: Score) -> str:
    """What the package's score says, and beside it how its problems were restricted."""
    drawn = result.drawn
    text = (
        f"reasoning-gym {drawn.version}, {drawn.name}, seed {drawn.seed}: mean score "
        f"{result.mean_score:.3f} on {len(drawn.entries):,} problems\n"
        f"restricted to what the task has: {drawn.restriction}\n"
    )
    if not drawn.passed_over:
        return text + "every problem drawn can be posed"
    faults = ", ".join(f"{fault} {count:,}" for fault, count in drawn.passed_over.items())
    return text + (
        f"{drawn.passed_over.total():,} of {drawn.drawn.total():,} drawn can't be posed and were "
        f"passed over: {faults}\n"
        f"(each of them counted as wrong: mean score {result.mean_score_of_all_drawn:.3f})"
    )


def _json_text(document: dict[str, Any]) -> str:
    """JSON with one line for each entry of a list, as a person would compare two such files."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n".join(f"    {json.dumps(entry)}" for entry in value)
            text = f"[\n{entries}\n  ]"
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(cli.main(command))
