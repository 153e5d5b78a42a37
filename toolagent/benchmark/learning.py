"""The learning record: the default run over fresh seeds, and what each part of it is worth.

Every run is the real command in a process of its own, so what is measured is what a person gets.
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolagent.files import write_result

# Seeds 100 to 107 were used for tuning; these were not.
RECORD_SEEDS = tuple(range(1000, 1020))
ABLATION_SEEDS = tuple(range(1000, 1003))

# Name -> what is set otherwise than in the default config.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "no curriculum: all stages at once": (
        "curriculum.levels=[{stage: 2}]",
        "curriculum.earlier_stage_share=0.667",
    ),
    "fixed schedule, in the tutorial's proportions": (
        "curriculum.levels=[{stage: 0, advance_after_env_steps: 300000}, "
        "{stage: 1, advance_after_env_steps: 200000}, {stage: 2}]",
    ),
    "no explorers": ("training.explorer_share=0.0",),
    "no explorers, no replay": (
        "training.explorer_share=0.0",
        "training.replay_coeff=0.0",
    ),
    **{
        f"{size:,} episodes an update": (
            f"training.episodes_per_update={size}",
            f"env_runners.num_envs_per_env_runner={size}",
        )
        for size in (512, 2048, 8192)
    },
}


@dataclass(frozen=True)
class LearningRun:
    """One run's `summary.json`, as far as it matters here."""

    seed: int
    env_steps: int
    seconds: float
    certified: int  # stages with every problem solved at the end
    first_steps: tuple[int | None, ...]  # by stage: env steps until first certified
    first_seconds: tuple[float | None, ...]

    @property
    def solved(self) -> bool:
        """All stages are certified."""
        return self.certified == len(self.first_steps)


def learning_run(seed: int, overrides: tuple[str, ...], stop_time_s: float) -> LearningRun:
    """Runs `python -m toolagent.run --seed ...` and reads what it came to.

    Raises:
        RuntimeError: the command failed; its last line of output is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        settings = ("run.dashboard=false", "run.sample_trajectories=0", *overrides)
        command = [sys.executable, "-m", "toolagent.run", "--seed", str(seed)]
        command += ["--output-dir", str(output), "--stop-time-s", str(stop_time_s)]
        for setting in settings:
            command += ["--set", setting]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
        ) as process:
            try:
                output_text, error_text = process.communicate()
            except KeyboardInterrupt:
                process.terminate()  # it ends its own processes, which a kill would leave
                raise
        if process.returncode:
            lines = (error_text or output_text).strip().splitlines() or ["no output"]
            raise RuntimeError(f"seed {seed}: {lines[-1]}")
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    stages = summary["stages"]
    return LearningRun(
        seed=seed,
        env_steps=summary["env_steps"],
        seconds=summary["wall_time_s"],
        certified=sum(stage["solved"] == stage["problems"] for stage in stages),
        first_steps=tuple(stage["first_solved_env_steps"] for stage in stages),
        first_seconds=tuple(stage["first_solved_s"] for stage in stages),
    )


def summary_row(name: str, runs: list[LearningRun]) -> dict[str, Any]:
    """Solved of all, and median and worst to each stage; None where a run never got there."""
    stages = range(len(runs[0].first_steps))
    return {
        "name": name,
        "seeds": [run.seed for run in runs],
        "solved": sum(run.solved for run in runs),
        "runs": len(runs),
        "env_steps": _spread([run.env_steps if run.solved else None for run in runs]),
        "seconds": _spread([run.seconds if run.solved else None for run in runs]),
        "stages": [
            {
                "stage": stage,
                "env_steps": _spread([run.first_steps[stage] for run in runs]),
                "seconds": _spread([run.first_seconds[stage] for run in runs]),
            }
            for stage in stages
        ],
    }


def _spread(values: list[Any]) -> dict[str, Any]:
    """Median and worst; a run that never got there is worse than any figure."""
    ordered = sorted(values, key=lambda value: float("inf") if value is None else value)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    median = None if None in middle else statistics.mean(middle)
    return {"median": median, "worst": ordered[-1]}


def plot_record(runs: list[LearningRun], path: Path) -> None:
    """A PNG: env steps until each stage was certified, a point a seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for stage in range(len(runs[0].first_steps)):
        first = [run.first_steps[stage] for run in runs]
        reached = [steps for steps in first if steps is not None]
        axes.plot(reached, [stage] * len(reached), "o", alpha=0.5, label=f"{len(reached)} seeds")
        if reached:
            axes.plot(statistics.median(reached), stage, "|", color="black", markersize=24)
    axes.set(
        xlabel="env steps until every problem of the stage is solved (bar: median)",
        yticks=range(len(runs[0].first_steps)),
        yticklabels=[f"stage {stage}" for stage in range(len(runs[0].first_steps))],
        ylim=(-0.5, len(runs[0].first_steps) - 0.5),
        xlim=(0, None),
        title=f"default run, {len(runs)} fresh seeds",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_result(path, png.getvalue())
