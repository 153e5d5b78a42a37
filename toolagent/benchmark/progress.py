"""What a person sees while the benchmark runs: a live line on a terminal, plain ones in a log."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class BenchmarkProgress(Progress):
    """A context manager; `announce` names what is being measured, one call a step."""

    def __init__(self, console: Console, steps: int):
        super().__init__(
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._step = self.add_task("", total=steps, completed=-1)

    def announce(self, text: str) -> None:
        """Begins the next step."""
        if self.disable:
            self.console.print(text)
        self.update(self._step, description=text, advance=1)
