"""Where a process's time goes: phases, measured on the monotonic clock.

`with phase("publish weights") as published:` measures a block; `published.seconds` is what it took.
In a process that records, the block is also counted, with its processor time, and kept as a span.
Phases may lie within phases. A phase is a part of a fragment, of an update or of the whole run,
never of an env step or an episode.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

# "1" in the environment of a run's actors: they record from the time that they import this.
PROFILE = "TOOLAGENT_PROFILE"
MOST_SPANS = 100_000  # of one process; behind them only long ones are kept
LONG_NS = 100_000_000
STARTING = "starting Python, imports"
BETWEEN_CALLS = "between calls"  # an actor waits, and Ray takes its calls and returns their results


@dataclass
class Total:
    """What one phase came to, with the phases in it."""

    ns: int = 0
    cpu_ns: int | None = 0  # of the thread that it ran in; None: not measured
    calls: int = 0


class Span(NamedTuple):
    """One time that a phase ran."""

    name: str
    thread: int
    began_ns: int  # on `time.perf_counter_ns`
    ns: int
    cpu_began_ns: int  # the processor time of the thread by then
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
    main_thread: int  # of an actor, the one that its methods run in
    # Those in which phases ran: the system's number, and the name.
    threads: dict[int, tuple[int, str]] = field(default_factory=dict)
    # Of the main thread: the phases' names from the outermost on, and what they came to.
    totals: dict[tuple[str, ...], Total] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    spans_left_out: int = 0


class _Place(threading.local):
    path: tuple[str, ...] = ()  # the phases that this thread is in


class _Recorder:
    """Takes down the phases of this process.

    Args:
        actor: the time between two phases of the main thread is one too, `BETWEEN_CALLS`.
    """

    def __init__(self, actor: bool) -> None:
        self._actor = actor
        self.place = _Place()
        self._main: phase | None = None
        now = time.perf_counter_ns()
        self.times = ProcessTimes(
            pid=os.getpid(),
            machine=_machine(),
            wall_clock_ns=time.time_ns() - now,
            began_ns=now - _age_of_process_ns(),
            ended_ns=now,
            main_thread=(threading.main_thread().ident or 0) if actor else threading.get_ident(),
        )
        self.times.threads[self.times.main_thread] = os.getpid(), "main"
        self._take_down((STARTING,), self.times.began_ns, now, 0, time.thread_time_ns())
        self._since = now, time.thread_time_ns()  # the end of the main thread's last outermost one

    def begin(self, name: str) -> tuple[tuple[str, ...], int]:
        """The phases that this one lies in, and the processor time of its thread so far."""
        outer, cpu_ns = self.place.path, time.thread_time_ns()
        if self._actor and not outer and threading.get_ident() == self.times.main_thread:
            self._fill_gap(cpu_ns)
        self.place.path = (*outer, name)
        return outer, cpu_ns

    def _fill_gap(self, cpu_ns: int) -> None:
        began, cpu_before = self._since
        self._take_down((BETWEEN_CALLS,), began, time.perf_counter_ns(), cpu_before, cpu_ns)

    def end(self, ended: phase, outer: tuple[str, ...], began_ns: int, cpu_ns: int) -> None:
        """Takes down a phase that is over; the thread is in the phases `outer` again."""
        now, cpu_now, self.place.path = time.perf_counter_ns(), time.thread_time_ns(), outer
        path, thread = (*outer, ended.name), threading.get_ident()
        self._take_down(path, began_ns, now, cpu_ns, cpu_now, thread, ended.parts)
        if not outer and thread == self.times.main_thread:
            self._since = now, cpu_now

    def main_phase(self, name: str) -> None:
        """See the function of that name."""
        now = self._main
        if threading.get_ident() != self.times.main_thread:
            return
        if self.place.path != (() if now is None else (now.name,)):  # within a phase
            return
        if now is not None:
            if now.name == name:
                return
            now.__exit__()
        self._main = phase(name).__enter__() if name else None

    def taken(self) -> ProcessTimes:
        """What it has come to so far; in an actor, between two of its phases."""
        if self._actor:
            self._fill_gap(cpu_ns := time.thread_time_ns())
            self._since = time.perf_counter_ns(), cpu_ns
        times = self.times
        return replace(
            times,
            ended_ns=time.perf_counter_ns(),
            threads=dict(times.threads),
            totals=dict(times.totals),
            spans=list(times.spans),
        )

    def _take_down(
        self,
        path: tuple[str, ...],
        began_ns: int,
        ended_ns: int,
        cpu_began_ns: int,
        cpu_ended_ns: int,
        thread: int | None = None,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        """Keeps a span, of the main thread if no other is given. The totals are the main thread's:
        they are to add up to the time of the process."""
        times, ns, cpu_ns = self.times, ended_ns - began_ns, cpu_ended_ns - cpu_began_ns
        if thread is None or thread == times.main_thread:
            thread = times.main_thread
            self._count(path, ns, cpu_ns)
            for name, seconds in (parts or {}).items():
                self._count((*path, name), round(seconds * 1e9), None)
        elif thread not in times.threads:
            times.threads[thread] = threading.get_native_id(), threading.current_thread().name
        if len(times.spans) < MOST_SPANS or ns >= LONG_NS:
            times.spans.append(Span(path[-1], thread, began_ns, ns, cpu_began_ns, cpu_ns, parts))
        else:
            times.spans_left_out += 1

    def _count(self, path: tuple[str, ...], ns: int, cpu_ns: int | None) -> None:
        total = self.times.totals.get(path)
        if total is None:
            total = self.times.totals[path] = Total()
        total.ns += ns
        total.cpu_ns = None if cpu_ns is None else cpu_ns + (total.cpu_ns or 0)
        total.calls += 1


_recorder: _Recorder | None = None


class phase:
    """Measures a block of code.

    Args:
        name: what it does, as a reader of the profile is told.

    Attributes:
        seconds: that the block took; 0 before its end.
        parts: to be set in the block: seconds of it that were spent with this and that.
    """

    __slots__ = ("_began_ns", "_cpu_ns", "_outer", "_recorder", "name", "parts", "seconds")

    def __init__(self, name: str):
        self.name, self.seconds = name, 0.0
        self.parts: Mapping[str, float] | None = None

    def __enter__(self) -> Self:
        self._recorder = recorder = _recorder
        if recorder is not None:
            self._outer, self._cpu_ns = recorder.begin(self.name)
        self._began_ns = time.perf_counter_ns()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.seconds = (time.perf_counter_ns() - self._began_ns) / 1e9
        if self._recorder is not None:
            self._recorder.end(self, self._outer, self._began_ns, self._cpu_ns)


def timed(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: each call of the function is a phase of that name."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with phase(name):
                return function(*args, **kwargs)

        return measured

    return decorate


def main_phase(name: str) -> None:
    """An outermost phase that no block can hold: it lasts until the next one, or until ''.

    Within a phase nothing changes."""
    if _recorder is not None:
        _recorder.main_phase(name)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """In the block the phases of this process are taken down, and those of the actors that it
    starts; the time since the process began is the first."""
    global _recorder
    _recorder, os.environ[PROFILE] = _Recorder(actor=False), "1"
    try:
        yield
    finally:
        _recorder = None
        os.environ.pop(PROFILE, None)


def taken() -> ProcessTimes | None:
    """Where the time of this process went so far; None if that is not taken down."""
    return None if _recorder is None else _recorder.taken()


def _age_of_process_ns() -> int:
    """To a hundredth of a second. (What psutil tells is off by up to one: the kernel gives the time
    that the machine was started at in whole seconds.)"""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # since the machine was started
    return max(0, round((time.clock_gettime(time.CLOCK_BOOTTIME) - started) * 1e9))


def _machine() -> str:
    """A machine's monotonic clock begins when it starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"


if os.environ.get(PROFILE) == "1":
    _recorder = _Recorder(actor=True)
