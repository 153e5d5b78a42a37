"""Where a process's time goes: phases, measured on the monotonic clock.

`with phase("publish weights") as published:` measures a block; `published.seconds` is what it took.
In a process that records (`record`, or the variable `TOOLAGENT_PROFILE` when this module is
imported) the block is also counted, with its processor time, and kept as a span. Phases may lie
within phases. A phase is a part of a fragment, of an update or of the whole run, never of an env
step or an episode.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

# Set in the environment of a run's processes: they record from the time that they import this.
PROFILE = "TOOLAGENT_PROFILE"
MOST_SPANS = 100_000  # of one process; behind them only long ones are kept
LONG_NS = 100_000_000
STARTING = "starting Python, imports"


@dataclass
class Total:
    """What one phase came to, with the phases in it."""

    ns: int = 0
    cpu_ns: int = 0  # of the thread that it ran in
    calls: int = 0


@dataclass(frozen=True)
class Span:
    """One time that a phase ran."""

    name: str
    thread: int
    began_ns: int  # on `time.perf_counter_ns`
    ns: int
    cpu_ns: int
    parts: Mapping[str, float] | None  # seconds within it, in whatever order they came


@dataclass
class ProcessTimes:
    """Where the time of one process went, until this was taken."""

    pid: int
    machine: str  # the same for processes whose monotonic clocks are the same
    wall_clock_ns: int  # `time.time_ns` at 0 of the monotonic clock
    began_ns: int  # the process
    ended_ns: int
    main_thread: int
    threads: dict[int, str] = field(default_factory=dict)  # names of those in which phases ran
    # Of the main thread: the phases' names from the outermost on, and what they came to.
    totals: dict[tuple[str, ...], Total] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    spans_left_out: int = 0


class _Place(threading.local):
    path: tuple[str, ...] = ()  # the phases that this thread is in


class _Recorder:
    """Takes down the phases of this process."""

    def __init__(self) -> None:
        self.place = _Place()
        self._lock = threading.Lock()
        self._stage: phase | None = None
        now = time.perf_counter_ns()
        self.times = ProcessTimes(
            pid=os.getpid(),
            machine=_machine(),
            wall_clock_ns=time.time_ns() - now,
            began_ns=now - _age_of_process_ns(),
            ended_ns=now,
            main_thread=threading.main_thread().ident or 0,
        )
        self._add((STARTING,), self.times.began_ns, now, time.process_time_ns(), None)

    def stage(self, name: str) -> None:
        stage = self._stage
        if threading.current_thread() is not threading.main_thread():
            return
        if stage is not None:
            if stage.name == name or self.place.path != (stage.name,):
                return
            stage.__exit__()
        self._stage = phase(name).__enter__() if name else None

    def add(
        self,
        path: tuple[str, ...],
        began_ns: int,
        ended_ns: int,
        cpu_ns: int,
        parts: Mapping[str, float] | None,
    ) -> None:
        with self._lock:
            self._add(path, began_ns, ended_ns, cpu_ns, parts)

    def _add(
        self,
        path: tuple[str, ...],
        began_ns: int,
        ended_ns: int,
        cpu_ns: int,
        parts: Mapping[str, float] | None,
    ) -> None:
        times, thread, ns = self.times, threading.get_ident(), ended_ns - began_ns
        if thread not in times.threads:
            times.threads[thread] = threading.current_thread().name
        if thread == times.main_thread:
            self._count(path, ns, cpu_ns)
            for name, seconds in (parts or {}).items():
                self._count((*path, name), round(seconds * 1e9), 0)
        if len(times.spans) < MOST_SPANS or ns >= LONG_NS:
            times.spans.append(Span(path[-1], thread, began_ns, ns, cpu_ns, parts))
        else:
            times.spans_left_out += 1

    def _count(self, path: tuple[str, ...], ns: int, cpu_ns: int) -> None:
        total = self.times.totals.setdefault(path, Total())
        total.ns += ns
        total.cpu_ns += cpu_ns
        total.calls += 1

    def taken(self) -> ProcessTimes:
        self.times.ended_ns = time.perf_counter_ns()
        return self.times


_recorder: _Recorder | None = None


class phase:
    """Measures a block of code.

    Args:
        name: what it does, as a reader of the profile is told.

    Attributes:
        seconds: that the block took; 0 before its end.
        parts: to be set in the block: seconds of it that were spent with this and that.
    """

    __slots__ = ("_began", "_cpu", "_outer", "_recorder", "name", "parts", "seconds")

    def __init__(self, name: str):
        self.name, self.seconds = name, 0.0
        self.parts: Mapping[str, float] | None = None

    def __enter__(self) -> Self:
        self._recorder = recorder = _recorder
        if recorder is not None:
            self._outer = recorder.place.path
            recorder.place.path = (*self._outer, self.name)
            self._cpu = time.thread_time_ns()
        self._began = time.perf_counter_ns()
        return self

    def __exit__(self, *exception: Any) -> None:
        ended, recorder = time.perf_counter_ns(), self._recorder
        self.seconds = (ended - self._began) / 1e9
        if recorder is not None:
            cpu_ns = time.thread_time_ns() - self._cpu
            path = recorder.place.path
            recorder.place.path = self._outer
            recorder.add(path, self._began, ended, cpu_ns, self.parts)


def timed(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: each call of the function is a phase of that name."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with phase(name):
                return function(*args, **kwargs)

        return measured

    return decorate


def gap(name: str, began: float, ended: float, cpu_s: float) -> None:
    """Takes down a time in which others ran this thread, as Ray does between two calls of an actor.

    Args:
        name: of the phase.
        began, ended: on `time.perf_counter`.
        cpu_s: that the thread has computed meanwhile.
    """
    if _recorder is not None:
        path = (*_recorder.place.path, name)
        _recorder.add(path, round(began * 1e9), round(ended * 1e9), round(cpu_s * 1e9), None)


def stage(name: str) -> None:
    """What the main thread does from now on, until the next stage; '' for nothing that has a name.

    Within a phase nothing changes.
    """
    if _recorder is not None:
        _recorder.stage(name)


def record() -> None:
    """Takes down the phases of this process from now on, and the time since it began as the first;
    nothing if that is done already."""
    global _recorder
    if _recorder is None:
        _recorder = _Recorder()


def end_recording() -> None:
    """Forgets what was taken down."""
    global _recorder
    _recorder = None


def taken() -> ProcessTimes | None:
    """Where the time of this process went so far; None if that is not taken down."""
    return None if _recorder is None else _recorder.taken()


def _age_of_process_ns() -> int:
    """To a hundredth of a second."""
    import psutil

    return max(0, round((time.time() - psutil.Process().create_time()) * 1e9))


def _machine() -> str:
    """A machine's monotonic clock begins when it starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"


if os.environ.get(PROFILE) == "1":
    record()
