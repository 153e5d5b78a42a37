"""Keeps slow or absent trackers away from the training loop."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Mapping

from toolagent.cli import brief
from toolagent.trackers.base import Tracker

RETRY_S = 15.0  # until a tracker that failed is tried again
MAX_WAITING = 10_000  # iterations; the oldest are given up beyond
PATIENCE_S = 30.0  # for what still waits at the end

Row = tuple[Mapping[str, float], Mapping[str, float], int]


class Outbox:
    """Hands rows to one tracker, in its own thread if the tracker may block.

    A failure is reported once on stderr. Rows are kept and sent again every `RETRY_S` seconds and
    at the end, so a server that is back receives all of them. Training never waits.
    """

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self.lost = 0  # rows that were given up
        self._waiting: deque[Row] = deque()
        self._failed = False
        self._ending = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if tracker.background:
            self._thread = threading.Thread(
                target=self._work, name=f"tracker {tracker.name}", daemon=True
            )
            self._thread.start()

    def put(self, row: Row) -> None:
        """Takes one row; returns at once if the tracker has a thread."""
        with self._changed:
            self._waiting.append(row)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self.lost += 1
            self._changed.notify()
        if self._thread is None:
            self._send()

    def close(self) -> None:
        """Tries once more to send the waiting rows, and discards those that fail."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
        with self._changed:
            self.lost += len(self._waiting)
            self._waiting.clear()

    def warn(self, error: BaseException) -> None:
        """One line on stderr, once."""
        if not self._failed:
            self._failed = True
            text = f"warning: {self.tracker.name}: {brief(error)}; training goes on"
            print(text, file=sys.stderr, flush=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                ending = self._ending
            sent = self._send()
            if ending:
                return
            if not sent:
                with self._changed:
                    self._changed.wait_for(lambda: self._ending, RETRY_S)

    def _send(self) -> bool:
        """Sends what waits, oldest first; False if the tracker failed."""
        while True:
            with self._changed:
                if not self._waiting:
                    return True
                row = self._waiting[0]
            try:
                self.tracker.log(*row)
            except Exception as error:
                self.warn(error)
                return False
            with self._changed:
                if self._waiting and self._waiting[0] is row:
                    self._waiting.popleft()
