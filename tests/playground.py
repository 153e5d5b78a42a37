"""A playground server as a user starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from bombs import plant
from processes import kill, start
from trained import PROGRAMS, trained_network

from toolagent.checkpoints.policy import save_policy

STARTS_WITHIN_S = 240  # on a machine with much else to do


def save_two(folder: Path) -> tuple[Path, Path]:
    """Two checkpoints of `calculator`: one that solves all, one a fifth of stage 2 only."""
    after, before = folder / "after", folder / "before"
    save_policy(after, trained_network(), "calculator", env_steps=2000)
    save_policy(before, trained_network((*PROGRAMS[:2], PROGRAMS[1])), "calculator", env_steps=1000)
    for checkpoint in (before, after):
        plant(checkpoint, folder / "mark")
    return before, after


class Server:
    """`python -m toolagent.serve ... --port 0` in a process of its own."""

    def __init__(self, *arguments: str, cwd: Path | None = None):
        self.process = start("toolagent.serve", *arguments, "--port", "0", cwd=cwd)
        self.mark = Path(arguments[0]).parent / "mark"  # there if a planted pickle was opened
        self.out: list[str] = []
        self.err: list[str] = []
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(target=lines.extend, args=(stream,), daemon=True).start()
        try:
            self.url = self._wait()
        except BaseException:
            self.end()
            raise

    def _wait(self) -> str:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline:
            found = re.search(r"playground: (http://\S+)/", "".join(self.out))
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"it did not start: {''.join(self.out)}{''.join(self.err)}")

    def processes(self) -> list[int]:
        """Its own and all that it has started, also indirectly."""
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def end(self, number: int = signal.SIGINT) -> int:
        """Sends a signal and waits; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                kill(self.process)
        return self.process.returncode
