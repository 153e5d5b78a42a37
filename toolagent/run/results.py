"""The end of a run: `summary.json`, the final table and sample trajectories."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from toolagent import cli
from toolagent.checkpoints.run_files import STOPPED_BY
from toolagent.checkpoints.training_state import best_checkpoint, list_checkpoints
from toolagent.errors import quoted
from toolagent.models.registry import network_name
from toolagent.rollouts.trajectory import Trajectory, one_line, trajectory
from toolagent.run.faults import faults_line
from toolagent.run.training import Outcome
from toolagent.tasks import Task

_OF_SAMPLE = ("stage", "formula", "problem", "target", "answer", "answered", "solved")


def summarize(outcome: Outcome) -> dict[str, Any]:
    """The content of `summary.json`."""
    state, keeper = outcome.state, outcome.keeper
    settings, folder = keeper.settings, keeper.folder
    last = keeper.last or next(reversed(list_checkpoints(folder.checkpoints)), None)
    best = best_checkpoint(folder.checkpoints)
    stages = []
    for stage in outcome.stages:
        first = state.first_solved.get(str(stage.stage))
        stages.append(
            stage.record()
            | {
                "first_solved_env_steps": first.env_steps if first else None,
                "first_solved_s": first.time_s if first else None,
                "mean_reward": stage.mean_return,
            }
        )
    return {
        "task": settings.task,
        "algorithm": settings.algorithm,
        "seed": settings.seed,
        "env_steps": state.env_steps,
        "wall_time_s": state.time_s,
        "env_steps_per_s": state.env_steps / state.time_s if state.time_s else 0.0,
        "iterations": state.iteration,
        "stopped_by": outcome.stopped_by,
        "stages": stages,
        "checkpoint": last and str(last.relative_to(folder.path)),
        "best_checkpoint": best and str(best.relative_to(folder.path)),
        "checkpoints_written": keeper.written,
        "checkpoints_s": keeper.seconds,
    }


def pipeline_line(rows: list[dict[str, Any]]) -> str:
    """How well sampling and learning overlapped, and what was lost, if anything was; '' for stock
    algorithms.

    Weights travel with the requests, so a weight sync is lost only with a request.
    """
    measured = [row for row in rows if row["learner_idle_share"] is not None]
    if not measured:
        return ""

    def mean(name: str) -> float:
        return sum(row[name] or 0.0 for row in measured) / len(measured)

    last, losses = measured[-1], ""
    if dropped := last["dropped_episodes_lifetime"]:
        losses += f"dropped {dropped:,.0f} episodes that came too late\n"
    if lost := last["lost_requests_lifetime"]:
        losses += f"lost {lost:,.0f} requests and the weights they carried\n"
    return (
        f"learner idle {mean('learner_idle_share'):.0%}, samplers idle "
        f"{mean('sampler_idle_share'):.0%}; staleness {mean('policy_age_mean'):.1f} updates\n"
        f"{losses}"
    )


def print_report(console: Console, outcome: Outcome, samples: list[Trajectory]) -> None:
    """The final table, sample trajectories, and what to do next."""
    state, task = outcome.state, outcome.task
    settings, folder = outcome.keeper.settings, outcome.keeper.folder
    trained = settings.curriculum.trained_stages(task.stages)
    stopped = STOPPED_BY[outcome.stopped_by]
    if not all(stage.complete for stage in outcome.stages):
        stopped = stopped.replace("certified solved", "solved, as far as it is measured")
    console.print(
        f"\n{state.env_steps:,} env steps in {state.time_s:.1f} s "
        f"({state.env_steps / max(state.time_s, 1e-9):,.0f} steps/s)\n"
        f"stopped: {stopped}"
    )
    faults = faults_line(outcome.rows[-1]) if outcome.rows else ""
    console.print(pipeline_line(outcome.rows) + (f"{faults}\n" if faults else ""))
    cli.print_table(console, final_table(outcome, trained))
    for note in cli.stage_notes(outcome.stages, trained):
        cli.say(console, note)
    if settings.task == "tutorial":
        console.print("(the tutorial prints the mean reward and calls it accuracy)", style="dim")
    _print_samples(console, samples, task)
    name = quoted(folder.name) + cli.code_flags(settings.task, network_name(type(outcome.network)))
    commands = [f"evaluate {name}", f"explain {name} --stage {trained[-1]}", f"serve {name}"]
    if outcome.stopped_by == "interrupted":
        commands.insert(0, f"run --resume {quoted(folder.name)}")
    console.print(f"\nreport: {quoted(folder.report_name)}", soft_wrap=True)
    for number, line in enumerate(commands):
        label = "      " if number else "next: "
        console.print(f"{label}python -m toolagent.{line}", soft_wrap=True)


def final_table(outcome: Outcome, trained: list[int]) -> Table:
    """All stages of the task, those that were not trained on too.

    The mean reward is left out where it is the accuracy, so where nothing but right answers is
    rewarded.
    """
    stages = outcome.stages
    judgements = cli.judgements_of(stages)
    shaped = any(abs(row.mean_return - row.accuracy) > 1e-9 for row in stages)
    counted = "certified" if all(row.complete for row in stages) else "solved"
    first_at = "first at\nenv step" if judgements else "first at env step"
    right = [counted, "accuracy", *judgements, *["mean reward"] * shaped, first_at]
    rows = [*cli.stage_rows(outcome.task, stages, trained)]
    named = any(problem for _, problem, _ in rows)  # not where the task has no formulas
    table = cli.table("stage", *["problem"] * named, *right, right=right)
    for stage, problem, row in rows:
        first = outcome.state.first_solved.get(stage)
        table.add_row(
            stage,
            *[problem] * named,
            f"{row.solved:,}/{row.problems:,}",
            cli.accuracy_text(row.solved, row.problems),
            *cli.judged_cells(row),
            *[f"{row.mean_return:.2f}"] * shaped,
            f"{first.env_steps:,}" if first else "-" if stage else "",
        )
    return table


def sample_trajectories(outcome: Outcome) -> list[Trajectory]:
    """`run.sample_trajectories` of each stage that was trained on."""
    settings, task = outcome.keeper.settings, outcome.task
    rng = np.random.default_rng(np.random.SeedSequence((settings.seed, 0x73616D70)))  # 'samp'
    return [
        trajectory(outcome.network, task, task.sample(rng, np.array([stage], np.int8)))
        for stage in settings.curriculum.trained_stages(task.stages)
        for _ in range(settings.run.sample_trajectories)
    ]


def behaviour(outcome: Outcome, samples: list[Trajectory]) -> dict[str, Any]:
    """The content of `behaviour.json` (`checkpoints.run_files.Behaviour`)."""
    formula = outcome.task.formula
    return {
        "stages": [
            {"stage": row.stage, "formula": formula(row.stage), "solved_in": list(row.solved_in)}
            for row in outcome.stages
        ],
        "trajectories": [
            {
                **{name: getattr(sample, name) for name in _OF_SAMPLE},
                "steps": [
                    {
                        **{name: _finite(value) for name, value in vars(step).items()},
                        "token": sample.vocabulary.names[step.token],
                        "runner_up": sample.vocabulary.names[step.runner_up],
                        "changed": list(step.changed),
                    }
                    for step in sample.steps
                ],
            }
            for sample in samples
        ],
    }


def _finite(value: Any) -> Any:
    """None for what JSON can't say: a network that diverged gives no numbers."""
    if isinstance(value, tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_samples(console: Console, samples: list[Trajectory], task: Task) -> None:
    for stage, of_stage in itertools.groupby(samples, key=lambda sample: sample.stage):
        formula = task.formula(stage)
        console.print(f"\nstage {stage}{formula and f', {formula}'}: sample trajectories")
        for sample in of_stage:
            cli.say(console, f"  {one_line(sample)}")
