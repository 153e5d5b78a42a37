"""The trials of a search as its display and its report show them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.tune import ExperimentAnalysis
from ray.tune.experiment import Trial
from rich.table import Table

from toolagent import cli
from toolagent.checkpoints.policy import POLICY_FILE
from toolagent.cluster.tune_state import has_trials
from toolagent.tune.folder import SearchFolder
from toolagent.tune.search import SECONDS, SEEDS, Search
from toolagent.tune.space import short_names, value_text
from toolagent.tune.trial import SCORE

BASE = "base"  # the name of the trial that is the base itself
FAILED, UNFINISHED, STOPPED = "failed", "unfinished", "stopped_early"
_HEADING = 8  # characters on a line of a heading, if words allow it
FIGURES = ("env_steps", "seconds", "accuracy", SCORE)  # of a trial's metrics, in the files


@dataclass(frozen=True)
class TrialRow:
    """What one trial came to, or has come to so far."""

    number: int  # in the order in which they were created
    folder: Path
    settings: dict[str, Any]  # without the seed; {}: the base itself
    metrics: dict[str, Any]  # of the last result; {} if there is none
    error: str | None = None
    latest: Path | None = None  # checkpoint
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    trial_id: str = ""  # Tune's
    seed: int | None = None  # where a setting is tried with several

    @property
    def status(self) -> str:
        """`certified`, the limit that was reached, `stopped_early`, `unfinished` or `failed`."""
        if self.error is not None:
            return FAILED
        if self.metrics.get("ended"):
            return str(self.metrics["ended"])
        return STOPPED if self.metrics.get("done") else UNFINISHED

    @property
    def ranked(self) -> bool:
        """Whether its score means anything: a failed trial is neither good nor bad."""
        return self.error is None and SCORE in self.metrics

    @property
    def outcome(self) -> str:
        """How the trial ended, in few words."""
        result = self.metrics
        if SCORE not in result:
            return "ended without a result"
        if result["certified"]:
            return f"certified at {result['env_steps']:,} env steps, {result['seconds']:.1f} s"
        why = {"env_steps": "env steps used up", "seconds": "time used up"}.get(
            str(result["ended"]), "unfinished" if self.status == UNFINISHED else "stopped early"
        )
        accuracy = f"{100 * result['accuracy']:.1f}%"
        return f"{why} at {result['env_steps']:,} env steps, accuracy {accuracy}"

    @property
    def checkpoint(self) -> Path | None:
        """The latest one; None where it has no agent: on another machine, or torn."""
        has_agent = self.latest is not None and (self.latest / POLICY_FILE).is_file()
        return self.latest if has_agent else None

    def record(self, folder: SearchFolder) -> dict[str, Any]:
        """As `summary.json` shows it."""
        checkpoint = self.checkpoint
        return {
            "number": self.number,
            "status": self.status,
            "settings": self.settings,
            **({} if self.seed is None else {"seed": self.seed}),
            "certified": bool(self.metrics.get("certified", False)),
            **{name: self.metrics.get(name) for name in FIGURES},
            "error": self.error,
            "folder": str(seen_from(folder.path, self.folder)),
            "checkpoint": checkpoint and str(seen_from(folder.path, checkpoint)),
        }


def rows_of(folder: SearchFolder) -> list[TrialRow]:
    """The trials as Tune has written them down, in the order of their creation."""
    if not has_trials(folder.trials):
        return []
    analysis = ExperimentAnalysis(str(folder.trials.resolve()))
    trials = in_order(analysis.trials or [])
    return [
        row_of(trial, number, reports_of(analysis, trial))
        for number, trial in enumerate(trials, start=1)
    ]


def reports_of(analysis: ExperimentAnalysis, trial: Trial) -> list[dict[str, Any]]:
    """The trial's results, oldest first, each iteration once.

    A trial that was resumed from a checkpoint reports the iterations after it again.
    """
    reports: list[dict[str, Any]] = []
    frame = analysis.trial_dataframes[trial.trial_id]
    for report in reversed(frame.to_dict("records")):
        if not reports or report["training_iteration"] < reports[-1]["training_iteration"]:
            reports.append(report)
    return reports[::-1]


def row_of(trial: Trial, number: int, history: Sequence[dict[str, Any]] = ()) -> TrialRow:
    """What there is to say of a trial of Tune's."""
    settings = dict(trial.config)
    seed = settings.pop(SEEDS, None)
    return TrialRow(
        number=number,
        folder=Path(str(trial.path)),
        settings=settings,
        metrics=dict(trial.last_result or {}),
        error=_cause(trial) if trial.status == Trial.ERROR else None,
        latest=Path(trial.checkpoint.path) if trial.checkpoint else None,
        history=list(history),
        trial_id=trial.trial_id,
        seed=seed,
    )


def in_order(trials: Iterable[Trial]) -> list[Trial]:
    """The trials in the order of their creation, which Tune's tag begins with ('3_lr=0.001'): a
    resumed search has them in another."""
    return sorted(trials, key=lambda trial: int(str(trial.experiment_tag).partition("_")[0]))


def is_base(config: dict[str, Any]) -> bool:
    """Whether a trial with these values is the base itself."""
    return not config.keys() - {SEEDS}


def ranking(rows: list[TrialRow]) -> list[TrialRow]:
    """Those that have a score, the best first; equal ones by their env steps. Of a setting that
    was tried with several seeds, its median trial (the lower one of two)."""
    settings: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.ranked:
            settings.setdefault(repr(sorted(row.settings.items())), []).append(row)
    middle = [sorted(found, key=_place)[len(found) // 2] for found in settings.values()]
    return sorted(middle, key=_place)


def _place(row: TrialRow) -> tuple[float, int]:
    """Sorts trials, the best first."""
    return -row.metrics[SCORE], row.metrics["env_steps"]


def trial_table(search: Search, rows: Iterable[tuple[TrialRow, str]]) -> Table:
    """A line a trial: its settings, its figures and the given status. Headings are broken, so that
    four settings fit 80 columns; what is no part of the budget is in the files."""
    names = short_names(list(search.space))
    base = search.base_values
    seed = ["seed"] * bool(search.seeds)
    unit = search.settings.budget[0]
    figures = ["accuracy", "seconds" if unit == SECONDS else "env steps"]
    headings = {name: _broken(name) for name in ("trial", *seed, *names.values(), *figures)}
    table = cli.table(*headings.values(), "status", right=[headings[n] for n in (*seed, *figures)])
    for row, status in rows:
        settings = row.settings or base
        values = [value_text(settings.get(key)) for key in names]
        cells = ["-"] * len(figures)
        if SCORE in row.metrics:
            spent = row.metrics[unit]
            cells = [
                f"{int(1000 * row.metrics['accuracy']) / 10:.1f}%",
                f"{spent:.1f}" if unit == SECONDS else f"{spent:,}",
            ]
        number = f"{row.number} {BASE}" if not row.settings else str(row.number)
        seeds = [str(row.seed)] * len(seed)
        table.add_row(number, *seeds, *values, *cells, status.replace("_", " "))
    return table


def _broken(name: str) -> str:
    """A heading on several lines: a word or two each."""
    lines: list[str] = []
    for word in name.replace(".", "._").replace(" ", "_").split("_"):
        if lines and len(lines[-1]) + len(word) < _HEADING:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def seen_from(base: Path, path: Path) -> Path:
    """Relative, if it is in that folder."""
    base, path = base.resolve(), path.resolve()
    return path.relative_to(base) if path.is_relative_to(base) else path


def _cause(trial: Trial) -> str:
    """The exception and its message: the last line of the file in which Tune keeps them."""
    text = str(trial.get_error() or "")
    # Of a trial that failed just now, the file is not in the search's folder yet.
    if not text and ray.is_initialized() and trial.error_file:
        with contextlib.suppress(OSError):  # nor could it be written
            text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return cli.one_line(lines[-1]) if lines else "no cause was reported"
