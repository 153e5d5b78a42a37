"""The trials of a search as its report shows them: settings, last result, outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import ExperimentAnalysis, ResultGrid
from ray.tune.experiment import Trial

from toolagent import cli
from toolagent.checkpoints.policy import POLICY_FILE
from toolagent.cluster.tune_state import has_trials
from toolagent.tune.folder import SearchFolder
from toolagent.tune.history import reports_of
from toolagent.tune.progress import in_order
from toolagent.tune.trial import SCORE

FAILED, UNFINISHED, STOPPED = "failed", "unfinished", "stopped_early"


@dataclass(frozen=True)
class TrialRow:
    """What one trial came to."""

    number: int  # in the order in which they were created
    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]  # of the last result; {} if there is none
    error: str | None = None
    checkpoint: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    trial_id: str = ""  # Tune's

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

    def record(self, folder: SearchFolder) -> dict[str, Any]:
        """As `summary.json` shows it."""
        metrics = self.metrics
        return {
            "number": self.number,
            "status": self.status,
            "settings": self.settings,
            "certified": bool(metrics.get("certified", False)),
            "env_steps": metrics.get("env_steps"),
            "seconds": metrics.get("seconds"),
            "accuracy": metrics.get("accuracy"),
            SCORE: metrics.get(SCORE),
            "error": self.error,
            "folder": _relative(self.folder, folder),
            "checkpoint": _relative(self.checkpoint, folder),
        }


def rows_of(folder: SearchFolder) -> list[TrialRow]:
    """The trials as Tune has written them down, in the order of their creation."""
    if not has_trials(folder.trials):
        return []
    analysis = ExperimentAnalysis(str(folder.trials.resolve()))
    # A result knows the settings only of a trial that came to report something.
    trials = in_order(analysis.trials or [])
    found = {Path(result.path).name: result for result in ResultGrid(analysis)}
    rows = []
    for number, trial in enumerate(trials, start=1):
        result = found[Path(trial.path).name]
        checkpoint = Path(result.checkpoint.path) if result.checkpoint else None
        if checkpoint is not None and not (checkpoint / POLICY_FILE).is_file():
            checkpoint = None  # on another machine, or torn
        error = None
        if trial.status == Trial.ERROR:  # also where the file with the cause is lost
            error = _cause(result.error) or "no cause was reported"
        rows.append(
            TrialRow(
                number=number,
                folder=Path(result.path),
                settings=dict(trial.config),
                metrics=dict(result.metrics or {}),
                error=error,
                checkpoint=checkpoint,
                history=reports_of(analysis, trial),
                trial_id=trial.trial_id,
            )
        )
    return rows


def ranking(rows: list[TrialRow]) -> list[TrialRow]:
    """Those that have a score, the best first; equal ones by their env steps."""
    return sorted(
        (row for row in rows if row.ranked),
        key=lambda row: (-row.metrics[SCORE], row.metrics["env_steps"]),
    )


def seen_from(base: Path, path: Path) -> Path:
    """Relative, if it is in that folder."""
    base, path = base.resolve(), path.resolve()
    return path.relative_to(base) if path.is_relative_to(base) else path


def _relative(path: Path | None, folder: SearchFolder) -> str | None:
    """The path as seen from the search's folder."""
    return None if path is None else str(seen_from(folder.path, path))


def _cause(error: Exception | None) -> str | None:
    """The exception and its message, without the traces of two processes above it."""
    if error is None:
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return cli.one_line(lines[-1] if lines else type(error).__name__)
