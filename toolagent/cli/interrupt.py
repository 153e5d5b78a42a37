"""Ctrl-C and SIGTERM as a wish to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Ctrl-C and SIGTERM as a wish to stop soon; a second one stops at once (KeyboardInterrupt).

    Signals as they were before come back at the end. In a thread other than the main one, which
    can't take signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self.take_over()
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_over(self) -> None:
        """Handles both signals from now on; again after `ray.init`, whose C++ takes SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.signal(number, self._request)
                self._before.setdefault(number, before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, already the first signal stops at once: there is nothing to be lost."""
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
        self.first_request()

    def first_request(self) -> None:
        """What else is to be done at the first signal."""
