"""The end of a run: `summary.json`, the final table and sample trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from toolagent import cli
from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts.trajectory import one_line, trajectory
from toolagent.session.folder import RunFolder
from toolagent.session.training import Outcome, stage_figures
from toolagent.tasks import Task

_STOPPED_BY = {
    "solved": "every stage of the curriculum is certified solved",
    "env_steps": "the limit of env steps is reached",
    "time": "the limit of training time is reached",
    "iterations": "the limit of iterations is reached",
    "interrupted": "interrupted; continue with --resume",
}


def summarize(settings: Any, outcome: Outcome, folder: RunFolder) -> dict[str, Any]:
    """`summary.json`, as design section 4 declares it."""
    state = outcome.state
    stages = []
    for stage in outcome.stages:
        first = state.first_solved.get(str(stage.stage))
        stages.append(
            stage_figures(stage)
            | {
                "first_solved_env_steps": int(first["env_steps"]) if first else None,
                "first_solved_s": first["time_s"] if first else None,
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
        "checkpoint": str(outcome.checkpoint.relative_to(folder.path)),
    }


def pipeline_line(rows: list[dict[str, Any]]) -> str:
    """How well sampling and learning overlapped, and what was lost; '' for stock algorithms.

    Weights travel with the requests, so a weight sync is lost only with a request.
    """
    measured = [row for row in rows if row["learner_idle_share"] is not None]
    if not measured:
        return ""

    def mean(name: str) -> float:
        return sum(row[name] or 0.0 for row in measured) / len(measured)

    last = measured[-1]
    return (
        f"learner idle {mean('learner_idle_share'):.0%}, samplers idle "
        f"{mean('sampler_idle_share'):.0%}; policy age {mean('policy_age_mean'):.1f} updates; "
        f"dropped {last['dropped_episodes_lifetime'] or 0:,.0f} episodes,\n"
        f"lost {last['lost_requests_lifetime'] or 0:,.0f} requests and the weights they carried\n"
    )


def print_report(
    console: Console,
    settings: Any,
    outcome: Outcome,
    network: StageGRUNetwork,
    task: Task,
    folder: RunFolder,
) -> None:
    """The final table, sample trajectories, and what to do next."""
    state = outcome.state
    console.print(
        f"\n{state.env_steps:,} env steps in {state.time_s:.1f} s "
        f"({state.env_steps / max(state.time_s, 1e-9):,.0f} steps/s)\n"
        f"stopped: {_STOPPED_BY[outcome.stopped_by]}"
    )
    console.print(pipeline_line(outcome.rows))
    table = cli.table(
        "stage",
        "problem",
        "certified",
        "accuracy",
        "mean reward",
        "first at env step",
        right=("certified", "accuracy", "mean reward", "first at env step"),
    )
    for stage in outcome.stages:
        first = state.first_solved.get(str(stage.stage))
        table.add_row(
            str(stage.stage),
            task.formulas[stage.stage],
            f"{stage.solved:,}/{stage.problems:,}",
            cli.accuracy_text(stage.solved, stage.problems),
            f"{stage.mean_return:.2f}",
            f"{int(first['env_steps']):,}" if first else "-",
        )
    console.print(table)
    if settings.task == "tutorial":
        console.print("(the tutorial prints the mean reward and calls it accuracy)", style="dim")
    _print_samples(console, settings, network, task)
    console.print(
        f"\nnext: python -m toolagent.evaluate {folder.path}\n"
        f"      python -m toolagent.explain {folder.path} --stage {task.num_stages - 1}",
        soft_wrap=True,
    )


def _print_samples(console: Console, settings: Any, network: StageGRUNetwork, task: Task) -> None:
    rng = np.random.default_rng(np.random.SeedSequence((settings.seed, 0x73616D70)))  # 'samp'
    for stage in range(task.num_stages):
        for sample in range(settings.run.sample_trajectories):
            if not sample:
                console.print(f"\nstage {stage}, {task.formulas[stage]}: sample trajectories")
            problem = task.sample(rng, np.array([stage], np.int8))
            console.print(f"  {one_line(trajectory(network, task, problem))}", soft_wrap=True)
