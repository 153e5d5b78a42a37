"""What a person sees during a search: a live table on a terminal, a line a trial in a log."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from toolagent import cli
from toolagent.tune.space import short_names, value_text
from toolagent.tune.trial import SCORE

_REFRESH_S = 0.5
_LOG_PERIOD_S = 30.0
_MOST_ROWS = 15


class SearchProgress(Callback):
    """Follows Tune's trials, and notes which of them reported anything."""

    def __init__(self, console: Console, num_trials: int, keys: list[str]):
        self.num_trials = num_trials
        self.keys = keys
        self.reported: set[str] = set()  # ids of trials, since this process began
        self._console = console
        self._live: Live | None = None
        self._start = self._shown = 0.0

    def setup(self, stop: Any = None, num_samples: Any = None, **info: Any) -> None:
        """Tune begins."""
        self._start = self._shown = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Shows the table, if the last one is old enough."""
        period = _REFRESH_S if self._live else _LOG_PERIOD_S
        if time.monotonic() - self._shown < period:
            return
        self._shown = time.monotonic()
        if self._live:
            self._live.update(self._table(trials), refresh=True)
        else:
            self._print(self._counts(trials))
            cli.print_table(self._console, self._table(trials))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has made an iteration."""
        self.reported.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended as it should."""
        result = trial.last_result or {}
        self._print(f"{self._label(trial, trials)}: {outcome_text(result)}; {trial}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed."""
        self._print(f"{self._label(trial, trials)}: FAILED: {last_line(trial.error_file)}; {trial}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Tune is through, or was interrupted."""
        if self._live:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _label(self, trial: Any, trials: list[Any]) -> str:
        number = [other.trial_id for other in in_order(trials)].index(trial.trial_id) + 1
        return f"{time.monotonic() - self._start:6.1f} s  trial {number}/{self.num_trials}"

    def _counts(self, trials: list[Any]) -> str:
        ended = sum(trial.is_finished() for trial in trials)
        running = sum(trial.status == trial.RUNNING for trial in trials)
        best = max((t.last_result[SCORE] for t in trials if SCORE in _result(t)), default=0.0)
        return (
            f"{time.monotonic() - self._start:6.1f} s  {ended}/{self.num_trials} trials ended, "
            f"{running} running, best score {best:.3f}"
        )

    def _table(self, trials: list[Any]) -> Table:
        """Running trials and the best of the others."""
        names = short_names(self.keys)
        figures = ["stage", "accuracy", "env steps", "seconds"]
        table = cli.table("trial", *names.values(), *figures, "status", right=figures)
        numbered = list(enumerate(in_order(trials), start=1))
        numbered.sort(key=lambda row: (row[1].is_finished(), -_result(row[1]).get(SCORE, 0.0)))
        for number, trial in numbered[:_MOST_ROWS]:
            result = _result(trial)
            settings = [value_text(trial.config[key]) for key in names]
            status = outcome_text(result) if trial.is_finished() else trial.status.lower()
            if trial.status == trial.ERROR:
                status = "failed"
            table.add_row(str(number), *settings, *figure_cells(result), status)
        return table


def in_order(trials: list[Any]) -> list[Any]:
    """The trials in the order of their creation, which Tune's tag begins with ('3_lr=0.001'): a
    resumed search has them in another."""
    return sorted(trials, key=lambda trial: int(trial.experiment_tag.partition("_")[0]))


def figure_cells(result: dict[str, Any]) -> list[str]:
    """Stage, accuracy, env steps and seconds of a trial; '-' where there is none yet."""
    if SCORE not in result:
        return ["-", "-", "-", "-"]
    return [
        str(result["stage"]),
        f"{int(1000 * result['accuracy']) / 10:.1f}%",
        f"{result['env_steps']:,}",
        f"{result['seconds']:.1f}",
    ]


def outcome_text(result: dict[str, Any]) -> str:
    """How a trial ended, in few words."""
    if SCORE not in result:
        return "ended without a result"
    if result["certified"]:
        return f"certified at {result['env_steps']:,} env steps, {result['seconds']:.1f} s"
    why = {"env_steps": "env steps used up", "seconds": "time used up"}.get(
        str(result["ended"]), "stopped early"
    )
    return f"{why} at {result['env_steps']:,} env steps, accuracy {100 * result['accuracy']:.1f}%"


def last_line(file: str | None) -> str:
    """The last line of a trial's error file: the exception and its message."""
    lines: list[str] = []
    if file is not None:
        with contextlib.suppress(OSError):  # nor could it be written
            text = Path(file).read_text(encoding="utf-8", errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
    return cli.one_line(lines[-1]) if lines else "no cause was reported"


def _result(trial: Any) -> dict[str, Any]:
    return trial.last_result or {}
