"""What a person sees during a run: one live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

# Seconds between the lines of a log: a tenth of the run so far, within these bounds. A notebook's
# cell keeps all of them.
_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 10.0, 300.0


class Display:
    """Live progress; a context manager around the training loop."""

    def __init__(self, console: Console, stop_env_steps: int | None, stop_time_s: float | None):
        self.console = console
        self.stop_env_steps = stop_env_steps
        self.stop_time_s = stop_time_s
        self._next_log = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),  # all columns together fit 80 characters
                TextColumn("{task.fields[left]}"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "starting env runners and learners", total=1.0, left=""
            )
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def event(self, text: str) -> None:
        """Something that stays on the screen."""
        self.console.print(text, soft_wrap=True)  # a log's lines stay whole

    def update(self, row: dict[str, Any]) -> None:
        """Shows one row of `progress.jsonl`."""
        done = self._share_done(row)
        left = self._time_left(row["time_s"], done)
        accuracies = " ".join(f"{int(100 * a):3d}%" for a in row["accuracy"].values())
        line = (
            f"stage {row['stage']}  accuracy {accuracies or 'not measured yet'}  "
            f"{row['env_steps_per_s']:,.0f} steps/s"
        )
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=line, completed=done, left=left)
        elif time.monotonic() >= self._next_log:
            period = max(_SHORTEST_PERIOD_S, min(row["time_s"] / 10, _LONGEST_PERIOD_S))
            self._next_log = time.monotonic() + period
            self.console.print(
                f"{row['time_s']:6.1f} s  {row['env_steps']:>9,} env steps  {line}  {left}",
                soft_wrap=True,
            )

    def _share_done(self, row: dict[str, Any]) -> float:
        """0..1: how near the nearest stop is."""
        shares = [0.0]
        if self.stop_env_steps:
            shares.append(row["env_steps"] / self.stop_env_steps)
        if self.stop_time_s:
            shares.append(row["time_s"] / self.stop_time_s)
        return min(1.0, max(shares))

    @staticmethod
    def _time_left(elapsed: float, done: float) -> str:
        """At most this long: the run ends earlier if every stage is certified."""
        if done <= 0:
            return ""
        seconds = round(elapsed * (1 - done) / done)
        return f"max {seconds // 60}:{seconds % 60:02d} left"
