"""A playground server as a user starts it, and a browser to look at it with."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trained import PROGRAMS, ROOT, trained_network

from toolagent.policy import save_policy

STARTS_WITHIN_S = 240  # on a machine with much else to do


def save_two(folder: Path) -> tuple[Path, Path]:
    """Two checkpoints of `calculator`: one that solves all, one a fifth of stage 2 only."""
    after, before = folder / "after", folder / "before"
    save_policy(after, trained_network(), "calculator", env_steps=2000)
    save_policy(before, trained_network((*PROGRAMS[:2], PROGRAMS[1])), "calculator", env_steps=1000)
    return before, after


class Server:
    """`python -m toolagent.serve ... --port 0` in a process of its own."""

    def __init__(self, *arguments: str):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolagent.serve", *arguments, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
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
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        return self.process.returncode


def chromium() -> str | None:
    """Where Debian has it; None if nowhere."""
    return shutil.which("chromium") if shutil.which("chromedriver") else None


@contextlib.contextmanager
def browser(width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """Headless Chromium through its driver, with a window of this size."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    ):
        options.add_argument(f"--{flag}")
    options.binary_location = str(chromium())
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    try:
        resize(driver, width, height)
        prefer(driver, dark=dark)
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int) -> None:
    """Lays the page out in a window of this size; narrow ones as a phone does."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def prefer(driver: Any, *, dark: bool = False, calm: bool = True) -> None:
    """What the user has set: dark mode, and no motion (then the page does not play by itself)."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {
            "features": [
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
            ]
        },
    )
