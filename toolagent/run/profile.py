"""`--profile`: where the time of each process of a run went, as a table and as a trace.

The trace is in Chrome's trace event format, which https://ui.perfetto.dev opens. Source: Google,
"Trace Event Format".
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError
from rich.console import Console

from toolagent import phases
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cluster.ray_internals import learner_manager
from toolagent.errors import quoted
from toolagent.files import write_atomically
from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.phases import ProcessTimes, Total
from toolagent.rollouts.env_runner import BatchedEnvRunner

ANSWER_WITHIN_S = 5.0  # an actor that hangs has no place in the profile
# Phases that are smaller than both are part of 'other'.
_LEAST_SHARE = 0.001  # of the process's time
_LEAST_SHARE_WITHIN = 0.01  # of the phase around it
_MOST_PROCESS_IDS = 2**22  # of Linux
_HEADINGS = ("seconds", "% of all", "CPU %", "calls", "ms each")


@dataclass
class Profile:
    """The processes of a run that have told where their time went: name -> times."""

    processes: dict[str, ProcessTimes] = field(default_factory=dict)
    _learner_is_local: bool = field(init=False, default=False)

    def collect(self, algorithm: Any) -> None:
        """Asks an algorithm's actors, before they are ended. Those that are gone, or hang, or are
        RLlib's own, are left out."""
        self._learner_is_local = learner_manager(algorithm) is None
        with contextlib.suppress(RayError):
            for kind in ("env_runner_group", "eval_env_runner_group"):
                group = getattr(algorithm, kind, None)
                if group is None or not group.num_remote_env_runners():
                    continue
                answers = group.foreach_env_runner(
                    _named_times, local_env_runner=False, timeout_seconds=ANSWER_WITHIN_S
                )
                for name, times in answers:
                    self._add(name, times)
            if not self._learner_is_local:
                answers = algorithm.learner_group.foreach_learner(
                    _named_times, timeout_seconds=ANSWER_WITHIN_S
                )
                for number, answer in enumerate(answers, 1):
                    if answer.ok:
                        name, times = answer.get()
                        self._add(f"{name} {number}", times)

    def _add(self, name: str, times: ProcessTimes | None) -> None:
        if times is None:
            return
        known, number = name, 1
        while name in self.processes:  # learning was begun again, with new processes
            number += 1
            name = f"{known} (started again, {number})"
        self.processes[name] = times

    def finish(self, folder: RunFolder, console: Console) -> None:
        """Adds this process, with what it has done so far, and writes and prints the profile."""
        phases.main_phase("")
        times = phases.taken()
        assert times is not None, "the driver does not record"
        driver = "driver with learner" if self._learner_is_local else "driver"
        self.processes = {driver: times, **self.processes}
        table = self.table()
        console.print(f"\n{table}", soft_wrap=True)
        try:
            write_atomically(folder.profile_table, table.encode())
            write_atomically(folder.profile, json.dumps(trace(self.processes)).encode())
        except OSError as error:
            print(f"warning: no profile: {error.strerror or error}", file=sys.stderr)
        else:
            name = quoted(f"{folder.name}/{folder.profile.name}")
            console.print(f"open in https://ui.perfetto.dev: {name}", soft_wrap=True)

    def table(self) -> str:
        """A part for each kind of process, whose rows add up to its time."""
        kinds: dict[str, list[ProcessTimes]] = {}
        for name, times in self.processes.items():
            kinds.setdefault(_kind(name), []).append(times)
        return "\n".join(_part(kind, of_kind) for kind, of_kind in kinds.items())


def _named_times(actor: Any) -> tuple[str, ProcessTimes | None]:
    measured = isinstance(actor, (BatchedEnvRunner, EpisodeColumnsLearner))
    return repr(actor), phases.taken() if measured else None


def _kind(name: str) -> str:
    """'env runner 2 (started again, 2)' is an 'env runner'."""
    return name.partition(" (")[0].rstrip("0123456789 ")


def _part(kind: str, processes: Sequence[ProcessTimes]) -> str:
    """The lines on one kind of process: the mean of all of them."""
    count = len(processes)
    wall_ns = sum(times.ended_ns - times.began_ns for times in processes) / count
    title = kind if count == 1 else f"{kind}s, mean of {count}"
    lines = [_line(f"{title}: {wall_ns / 1e9:.2f} s", _HEADINGS)]
    for depth, name, total in _rows(merged(processes, count), wall_ns):
        figures = [f"{total.ns / 1e9:.2f}", f"{100 * total.ns / wall_ns:.1f}", *[""] * 3]
        if total.cpu_ns is not None and total.ns:
            figures[2] = f"{100 * total.cpu_ns / total.ns:.0f}"
        if total.calls:
            calls = total.calls / count
            figures[3:] = f"{calls:,.0f}", f"{total.ns / 1e6 / calls:,.2f}"
        lines.append(_line("  " * depth + name, figures))
    return "\n".join(lines) + "\n"


def _line(label: str, cells: Sequence[str]) -> str:
    widths = (9, 9, 7, 8, 10)
    return (
        f"{label:<36}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    ).rstrip()


def merged(processes: Sequence[ProcessTimes], count: int = 1) -> dict[tuple[str, ...], Total]:
    """The phases of several processes: the sums, divided by a number, and the calls in all."""
    result: dict[tuple[str, ...], Total] = {}
    for times in processes:
        for path, total in times.totals.items():
            known = result.setdefault(path, Total(cpu_ns=0 if total.cpu_ns is not None else None))
            known.ns += total.ns
            known.calls += total.calls
            if known.cpu_ns is not None:
                known.cpu_ns += total.cpu_ns or 0
    for total in result.values():
        total.ns = round(total.ns / count)
        total.cpu_ns = None if total.cpu_ns is None else round(total.cpu_ns / count)
    return result


def _rows(
    totals: Mapping[tuple[str, ...], Total], wall_ns: float, within: tuple[str, ...] = ()
) -> Iterator[tuple[int, str, Total]]:
    """Depth, name and figures of each row: a phase, those in it below it, and what is none of them
    as 'other'."""
    depth, whole_ns = len(within), totals[within].ns if within else round(wall_ns)
    least_ns = min(_LEAST_SHARE * wall_ns, _LEAST_SHARE_WITHIN * whole_ns)
    inside = {path: t for path, t in totals.items() if path[:-1] == within}
    shown = {path: t for path, t in inside.items() if t.ns >= least_ns}
    for path, total in shown.items():
        yield depth, path[-1], total
        yield from _rows(totals, wall_ns, path)
    rest_ns = whole_ns - sum(total.ns for total in shown.values())
    if not within or (shown and rest_ns >= least_ns):
        yield depth, "other", Total(rest_ns, None)


def trace(processes: Mapping[str, ProcessTimes]) -> dict[str, Any]:
    """All spans in Chrome's trace event format, in microseconds from the first process's begin.

    Processes of one machine have one clock. Those of other machines are placed by their wall
    clocks, so as exactly as these agree.
    """
    first = next(iter(processes.values()))
    events: list[dict[str, Any]] = []
    used: set[int] = set()
    for place, (name, times) in enumerate(processes.items()):
        process = times.pid
        while process in used:  # of another machine
            process += _MOST_PROCESS_IDS
        used.add(process)
        offset_ns = first.began_ns
        if times.machine != first.machine:
            offset_ns += first.wall_clock_ns - times.wall_clock_ns
        # The main thread's number is the process's, as in Linux.
        threads = {thread: process - times.pid + at for thread, (at, _) in times.threads.items()}
        names = [("process_name", process, {"name": name})]
        names += [("process_sort_index", process, {"sort_index": place})]
        names += [
            ("thread_name", threads[at], {"name": of}) for at, (_, of) in times.threads.items()
        ]
        for kind, thread, given in names:
            events.append({"ph": "M", "name": kind, "pid": process, "tid": thread, "args": given})
        for span in times.spans:
            event = {
                "ph": "X",
                "name": span.name,
                "pid": process,
                "tid": threads[span.thread],
                "ts": (span.began_ns - offset_ns) / 1000,
                "dur": span.ns / 1000,
                "tts": span.cpu_began_ns / 1000,
                "tdur": span.cpu_ns / 1000,
            }
            if span.parts:
                event["args"] = {f"{part}, ms": 1000 * s for part, s in span.parts.items()}
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
