"""What a person sees during a search: a live table on a terminal, a line a trial in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from toolagent import cli
from toolagent.tune.rows import UNFINISHED, TrialRow, in_order, row_of, trial_table
from toolagent.tune.search import Search
from toolagent.tune.trial import SCORE

_REFRESH_S = 0.5
_LOG_PERIOD_S = 30.0
_MOST_ROWS = 15


class SearchProgress(Callback):
    """Follows Tune's trials, and notes which of them reported anything."""

    def __init__(self, console: Console, search: Search):
        self.reported: set[str] = set()  # ids of trials, since this process began
        self._console, self._search = console, search
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._start = self._shown = 0.0

    def setup(self, stop: Any = None, num_samples: Any = None, **info: Any) -> None:
        """Tune begins."""
        self._start = self._shown = time.monotonic()
        if self._console.is_terminal:
            self._live.start()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Shows the table, if the last one is old enough."""
        period = _REFRESH_S if self._live.is_started else _LOG_PERIOD_S
        if time.monotonic() - self._shown < period:
            return
        self._shown = time.monotonic()
        rows = [(row_of(t, n), t) for n, t in enumerate(in_order(trials), start=1)]
        if self._live.is_started:
            self._live.update(self._table(rows), refresh=True)
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
        self._live.stop()

    def _print(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._start:6.1f} s  {text}", soft_wrap=True)

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
        first = sorted(
            rows, key=lambda row: (row[1].is_finished(), -row[0].metrics.get(SCORE, 0.0))
        )
        return trial_table(
            self._search,
            [
                (row, trial.status.lower() if row.status == UNFINISHED else row.status)
                for row, trial in first[:_MOST_ROWS]
            ],
        )
