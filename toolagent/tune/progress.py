"""What a person sees during a search: a live table on a terminal, a line a trial in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.table import Table

from toolagent import cli
from toolagent.cli.activity import SPARE_COLUMNS, Activity
from toolagent.tune.rows import UNFINISHED, TrialRow, in_order, row_of, trial_table
from toolagent.tune.search import Search
from toolagent.tune.trial import SCORE

_REFRESH_S = 0.5
_LOG_PERIOD_S = 30.0
_MOST_ROWS = 15


class SearchProgress(Callback):
    """Follows Tune's trials, and notes which of them reported anything."""

    def __init__(self, activity: Activity, search: Search):
        self.reported: set[str] = set()  # ids of trials, since this process began
        self._activity, self._search = activity, search
        self._console: Console = activity.console
        self._start = self._shown = 0.0

    def setup(self, stop: Any = None, num_samples: Any = None, **info: Any) -> None:
        """Tune begins."""
        self._start = self._shown = time.monotonic()
        self._activity.doing("starting the first trials", since=self._start)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Shows the table, if the last one is old enough."""
        on_terminal = self._console.is_terminal
        period = _REFRESH_S if on_terminal else _LOG_PERIOD_S
        if time.monotonic() - self._shown < period:
            return
        self._shown = time.monotonic()
        rows = [(row_of(t, n), t) for n, t in enumerate(in_order(trials), start=1)]
        if on_terminal:
            tables = cli.fitted_table(self._console, self._table(rows), SPARE_COLUMNS)
            self._activity.show(*tables)
            if any(trial.status != Trial.PENDING for _, trial in rows):
                self._activity.doing(self._counts(rows), since=self._start)
        else:
            self._print(self._counts(rows))
            cli.print_table(self._console, self._table(rows))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has made an iteration."""
        self.reported.add(trial.trial_id)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial ended as it should, or failed."""
        row = row_of(trial, in_order(trials).index(trial) + 1)
        outcome = row.outcome if row.error is None else f"FAILED: {row.error}"
        self._print(f"trial {row.number}/{self._search.num_trials}: {outcome}; {trial}")

    on_trial_error = on_trial_complete

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Tune is through, or was interrupted."""
        self._activity.show()
        self._activity.doing("writing the results")

    def _print(self, text: str) -> None:
        cli.say(self._console, f"{time.monotonic() - self._start:6.1f} s  {text}")

    def _counts(self, rows: Sequence[tuple[TrialRow, Trial]]) -> str:
        ended = sum(trial.is_finished() for _, trial in rows)
        running = sum(trial.status == Trial.RUNNING for _, trial in rows)
        best = max((row.metrics.get(SCORE, 0.0) for row, _ in rows), default=0.0)
        return (
            f"{ended}/{self._search.num_trials} trials ended, {running} running, "
            f"best score {best:.3f}"
        )

    def _table(self, rows: Sequence[tuple[TrialRow, Trial]]) -> Table:
        """Running trials and the best of the others."""

        def place(of: tuple[TrialRow, Trial]) -> tuple[bool, float]:
            row, trial = of
            ended = trial.is_finished()
            return ended, -row.metrics.get(SCORE, 0.0) if ended else row.number

        shown = sorted(rows, key=place)[:_MOST_ROWS]
        return trial_table(self._search, [(row, _status(row, trial)) for row, trial in shown])


def _status(row: TrialRow, trial: Trial) -> str:
    if row.status != UNFINISHED:
        return row.status
    if trial.status == Trial.RUNNING:
        return "running" if SCORE in row.metrics else "starting"
    return "waiting" if trial.status == Trial.PENDING else trial.status.lower()
