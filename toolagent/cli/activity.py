"""What a command is doing, shown as long as it is doing it."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from toolagent.cli.interrupt import Interrupt

# Columns on the right that nothing live is shown in. The terminal echoes `^C` behind it: on a line
# that is full, the echo would begin a new one, and the lines above would not be erased.
SPARE_COLUMNS = 2
_REFRESHES_PER_S = 4  # each takes a millisecond or two of the main thread's time


class Activity:
    """A context manager: on a terminal, a live line, and what `show` puts above it, that are gone
    at the end; in a log, a line for each step that may take long.

    Args:
        console: on which other output may be printed meanwhile.
        interrupt: a first signal is acknowledged in the line.
    """

    # What is said when a signal came.
    stopping = "stops as soon as this is done; Ctrl-C again: stops at once"

    def __init__(self, console: Console, interrupt: Interrupt | None = None):
        self.console = console
        self._interrupt = interrupt
        self._live: Live | None = None
        self._shown: RenderableType | None = None
        self._doing, self._since = "", time.monotonic()
        self._spinner = Spinner("dots")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._constrained_picture,
                console=self.console,
                refresh_per_second=_REFRESHES_PER_S,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # else it is a file, which is not for stdout
            )
            self._live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.end()

    def end(self) -> None:
        """Takes the line off the screen; nothing is shown from now on."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def loading(self, *modules: str) -> None:
        """Says that these are being imported; nothing if they are there already."""
        if not all(name in sys.modules for name in modules):
            self.doing(f"loading {' and '.join(modules)}")

    def step(self, text: str) -> None:
        """What is done from now on, and may take so long that a log has a line of it."""
        self.doing(text)
        if not self.console.is_terminal:
            self.console.print(text)

    def doing(self, text: str, since: float | None = None) -> None:
        """What is done from now on, or since that moment of `time.monotonic()`."""
        self._doing, self._since = text, time.monotonic() if since is None else since
        if self._live is not None:
            self._live.refresh()

    def show(self, *shown: RenderableType) -> None:
        """What a terminal shows above the line from now on."""
        self._shown = Group(*shown)

    @property
    def _interrupted(self) -> bool:
        return self._interrupt is not None and self._interrupt.requested

    def _picture(self) -> RenderableType:
        """What the terminal shows now."""
        line = self._line() if self._doing else ""
        return line if self._shown is None else Group(self._shown, line)

    def _constrained_picture(self) -> RenderableType:
        return Constrain(self._picture(), self.console.width - SPARE_COLUMNS)

    def _line(self) -> RenderableType:
        text = self._doing
        seconds = time.monotonic() - self._since
        if seconds >= 1:
            text += f", {seconds:.0f} s" if seconds < 100 else f", {time_text(seconds)}"
        if self._interrupted:
            text += f"; {self.stopping}"
        self._spinner.update(text=Text(text, overflow="ellipsis", no_wrap=True))
        return self._spinner


def time_text(seconds: float) -> str:
    """'0:07', '59:59', '1:00:00'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
