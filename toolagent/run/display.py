"""What a person sees during a run: a live panel on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import psutil
from rich.console import Console, RenderableType
from rich.segment import Segments

from toolagent import cli
from toolagent.cli.activity import SPARE_COLUMNS, Activity, time_text
from toolagent.cli.interrupt import Interrupt
from toolagent.config.settings import Settings
from toolagent.phases import main_phase
from toolagent.run.faults import faults_line
from toolagent.run.panel import TrainingPanel, number_text, percent_text
from toolagent.tasks import get_task

# Seconds between the lines of a log: a tenth of the run so far, within these bounds. A notebook's
# cell keeps all of them.
_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 10.0, 300.0
_PANEL_PERIOD_S = 1.0
_MEMORY_PERIOD_S = 5.0  # looking through the processes takes some 20 ms


class Display(Activity):
    """Live progress; a context manager around the whole session."""

    def __init__(self, console: Console, interrupt: Interrupt | None = None):
        super().__init__(console, interrupt)
        self._settings: Settings | None = None
        self._problems: dict[int, str] = {}
        self._row: dict[str, Any] | None = None
        self._solved: Collection[str] = ()
        self._next_log = self._next_memory = self._next_panel = 0.0
        self._panel: tuple[Any, RenderableType] = (None, "")  # what it depends on, and the panel
        self._memory_bytes = 0

    def doing(self, text: str) -> None:
        """What is done from now on; in a profile it is a phase."""
        main_phase(text)
        super().doing(text)

    def begin(self, settings: Settings) -> None:
        """Knows from now on what is trained."""
        self._settings, task = settings, get_task(settings.task)
        self._problems = {stage: task.formula(stage) for stage in task.stages}
        self.stopping = (
            "stops after this update and writes a checkpoint; Ctrl-C again: stops at once"
        )

    def event(self, text: str) -> None:
        """Something that stays on the screen."""
        cli.say(self.console, text)

    def update(self, row: dict[str, Any], solved: Collection[str] = ()) -> None:
        """Shows one row of `progress.jsonl`.

        Args:
            row: of the iteration that has ended.
            solved: the stages that were solved so far.
        """
        self._doing = ""
        self._row, self._solved = row, solved
        if self._live is None and time.monotonic() >= self._next_log:
            period = max(_SHORTEST_PERIOD_S, min(row["time_s"] / 10, _LONGEST_PERIOD_S))
            self._next_log = time.monotonic() + period
            self.console.print(self._log_line(row), soft_wrap=True)

    def _log_line(self, row: dict[str, Any]) -> str:
        accuracies = ", ".join(f"{s}: {percent_text(a)}" for s, a in row["accuracy"].items())
        left = self._time_left(row)
        return (
            f"{row['time_s']:6.1f} s  {row['env_steps']:>9,} env steps  stage {row['stage']}  "
            f"accuracy {accuracies or 'not measured yet'}  {row['env_steps_per_s']:,.0f} steps/s  "
            f"return {number_text(row.get('episode_return_mean'))}  "
            f"entropy {number_text(row.get('entropy'))}{left and f'  at most {left} left'}"
        )

    def _picture(self) -> RenderableType:
        if self._row is None or self._settings is None:
            return super()._picture()
        # Laid out once a second: that takes 5 ms of the process that learns.
        key = (self.console.size, self._doing, self._interrupted)
        if self._panel[0] != key or time.monotonic() >= self._next_panel:
            self._next_panel = time.monotonic() + _PANEL_PERIOD_S
            options = self.console.options.update(width=self.console.width - SPARE_COLUMNS)
            panel = self.console.render(self._layout(self._row), options)
            self._panel = (key, Segments(panel))
        return self._panel[1]

    def _layout(self, row: dict[str, Any]) -> TrainingPanel:
        assert self._settings is not None
        notes = []
        if self._doing:
            notes.append((self._doing, "bold"))
        if faults := faults_line(row):
            notes.append((faults, "yellow"))
        if self._interrupted:
            notes.append((self.stopping, "bold yellow"))
        return TrainingPanel(
            title=f"{self._settings.task}, seed {self._settings.seed}: stage {row['stage']}",
            row=row,
            problems=self._problems,
            solved=self._solved,
            left=self._time_left(row),
            memory_bytes=self._memory(),
            notes=notes,
        )

    def _memory(self) -> int:
        """Bytes that this process and those that it started have for themselves."""
        if time.monotonic() >= self._next_memory:
            self._next_memory = time.monotonic() + _MEMORY_PERIOD_S
            self._memory_bytes = _memory_of(psutil.Process())
        return self._memory_bytes

    def _time_left(self, row: dict[str, Any]) -> str:
        """At most this long: the run ends earlier if every stage is certified. '' without limit."""
        run = self._settings.run if self._settings else None
        shares = [
            value / limit
            for limit, value in (
                (run and run.stop_env_steps, row["env_steps"]),
                (run and run.stop_time_s, row["time_s"]),
            )
            if limit
        ]
        done = min(1.0, max(shares, default=0.0))
        return time_text(row["time_s"] * (1 - done) / done) if done > 0 else ""


def _memory_of(process: psutil.Process) -> int:
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            memory: Any = one.memory_info()
        except psutil.Error:  # it has ended, or is not ours
            continue
        total += memory.rss - memory.shared
    return total
