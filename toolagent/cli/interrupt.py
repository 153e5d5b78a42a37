"""Ctrl-C, SIGTERM and SIGHUP as requests to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)  # without a handler they end the process


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, so that Ray's processes
    and temporary files are cleaned up.

    A signal that is ignored (SIGHUP under `nohup`) or handled already stays so.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    taken = [n for n in _ENDING if main_thread and signal.getsignal(n) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class Interrupt:
    """Ctrl-C, SIGTERM and SIGHUP as requests to stop soon; a second signal stops at once
    (KeyboardInterrupt). A SIGHUP that is ignored, as under `nohup`, stays ignored.

    The earlier handlers are restored at the end. In a thread other than the main one, which can't
    handle signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_ENDING):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal stops at once: nothing can be lost."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was a signal."""
        if self.requested:
            raise KeyboardInterrupt

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self._at_once:
            self.requested = True
            raise KeyboardInterrupt
        self.requested = True
