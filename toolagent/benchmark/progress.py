"""What a person sees while the benchmark runs: a live line on a terminal, plain ones in a log."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class BenchmarkProgress:
    """A context manager; `announce` names what is being measured, one call a step."""

    def __init__(self, console: Console, steps: int):
        self.console = console
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task("", total=steps)
        self._begun = False

    def __enter__(self) -> BenchmarkProgress:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def announce(self, text: str) -> None:
        """Begins the next step."""
        if self._progress is None:
            self.console.print(text)
        else:
            self._progress.update(self._task, description=text, advance=int(self._begun))
        self._begun = True
