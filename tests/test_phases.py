"""Phases: what is measured, what is kept, and what a profile makes of it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading

import pytest
from traces import check_trace, extent

from toolagent import phases
from toolagent.phases import main_phase, phase, recording, taken, timed
from toolagent.run.profile import Profile, trace


class Clock:
    """In place of the module `time`: stands still but for what is slept and computed."""

    def __init__(self):
        self.ns, self.cpu_ns = 5_000_000_000, 0
        self.process_time_ns = self.thread_time_ns = lambda: self.cpu_ns
        self.perf_counter_ns = lambda: self.ns
        self.time_ns = lambda: self.ns + 1_700_000_000_000_000_000

    def sleep(self, seconds):
        self.ns += round(seconds * 1e9)

    def compute(self, seconds):
        self.sleep(seconds)
        self.cpu_ns += round(seconds * 1e9)


@pytest.fixture(scope="module")
def clock():
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(phases, "time", clock)
        patch.setattr(phases, "_age_of_process_ns", lambda: 100_000_000)
        yield clock


@pytest.fixture(scope="module")
def times(clock):
    """Of this process: main phases, phases in them, and a thread beside them."""

    def sleep(name, seconds):
        with phase(name):
            clock.sleep(seconds)

    with recording():
        main_phase("work")
        with phase("outer") as outer:
            sleep("inner", 0.02)
            sleep("inner", 0.03)
            clock.compute(0.05)
            outer.parts = {"this": 0.01, "that": 0.02}
            main_phase("is not begun within a phase")
        thread = threading.Thread(target=sleep, args=("beside", 0.01), name="another")
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), phase("fails"):
            clock.sleep(0.01)
            _ = 1 / 0
        main_phase("more work")
        timed("decorated")(sleep)("inner", 0.01)
        main_phase("")
        clock.sleep(0.04)
        return taken()


def test_a_phase_tells_its_seconds_and_nothing_is_kept_without_a_recording(clock):
    with phase("one") as one:
        clock.sleep(0.02)
    assert one.seconds == 0.02
    assert taken() is None
    assert phases.PROFILE not in os.environ


def test_phases_are_counted_where_they_lie(times):
    assert {path: (total.ns / 1e6, total.calls) for path, total in times.totals.items()} == {
        (phases.STARTING,): (100, 1),
        ("work", "outer", "inner"): (50, 2),
        ("work", "outer", "this"): (10, 1),
        ("work", "outer", "that"): (20, 1),
        ("work", "outer"): (100, 1),
        ("work", "fails"): (10, 1),
        ("work",): (120, 1),
        ("more work", "decorated", "inner"): (10, 1),
        ("more work", "decorated"): (10, 1),
        ("more work",): (10, 1),
    }
    assert times.totals["work", "outer"].cpu_ns == 50e6
    assert times.totals["work", "outer", "inner"].cpu_ns == 0
    assert (times.ended_ns - times.began_ns) / 1e6 == 100 + 120 + 10 + 40


def table_of(processes):
    return Profile(dict(processes)).table()


def test_the_rows_of_the_table_add_up_and_fit_a_terminal(times):
    table = table_of({"driver": times})
    title, *rows = table.splitlines()
    whole = float(title.split(": ")[1].split(" s ")[0])
    shares = [row[36:].split() for row in rows if row and not row.startswith(" ")]
    assert sum(float(cells[0]) for cells in shares) == pytest.approx(whole) == 0.27
    assert sum(float(cells[1]) for cells in shares) == pytest.approx(100, abs=0.2)
    assert rows[-1].split() == ["other", "0.04", "14.8"]
    assert max(map(len, table.splitlines())) <= 80


def test_processes_of_a_kind_are_shown_as_their_mean(times):
    twice = dataclasses.replace(
        times,
        totals={p: dataclasses.replace(t, ns=3 * t.ns) for p, t in times.totals.items()},
        ended_ns=times.began_ns + 3 * (times.ended_ns - times.began_ns),
    )
    lines = table_of({"env runner 1": times, "env runner 2": twice}).splitlines()
    assert lines[0].startswith("env runners, mean of 2: 0.54 s")
    inner = next(line for line in lines if line.startswith("    inner"))
    assert inner.split() == ["inner", "0.10", "18.5", "0", "2", "50.00"]


def test_the_trace_is_valid_and_places_processes_of_other_machines_by_their_wall_clocks(times):
    away = dataclasses.replace(
        times,
        machine="another",  # which was started 1,000 s earlier, so its clock shows more
        wall_clock_ns=times.wall_clock_ns - 1_000_000_000_000,
        began_ns=times.began_ns + 1_002_000_000_000,
        spans=[s._replace(began_ns=s.began_ns + 1_002_000_000_000) for s in times.spans],
    )
    written = trace({"driver": times, "env runner 1": times, "env runner 2": away})
    found = check_trace(written, left_out=0.15)
    assert list(found) == ["driver", "env runner 1", "env runner 2"]
    names = {event["args"].get("name") for event in written["traceEvents"] if event["ph"] == "M"}
    assert {"main", "another"} <= names
    here, there = extent(found["env runner 1"]), extent(found["env runner 2"])
    assert here[0] == pytest.approx(0, abs=1)
    assert there[0] == pytest.approx(2e6, abs=1e3)
    outer = next(event for event in found["driver"] if event["name"] == "outer")
    assert outer["args"] == {"this, ms": pytest.approx(10), "that, ms": pytest.approx(20)}


def test_a_long_run_s_trace_is_bounded_and_its_table_is_not(monkeypatch, clock):
    monkeypatch.setattr(phases, "MOST_SPANS", 10)
    with recording():
        for seconds in [0.01] * 50 + [0.1]:
            with phase("long" if seconds > 0.01 else "short"):
                clock.sleep(seconds)
        times = taken()
    assert times.totals["short",].calls == 50
    assert [span.name for span in times.spans] == [phases.STARTING, *["short"] * 9, "long"]
    assert times.spans_left_out == 41


def test_an_actor_records_from_its_start_and_the_time_between_its_calls():
    code = (
        "import time\n"
        "from toolagent.phases import phase, taken\n"
        "for _ in range(2):\n"
        "    with phase('call'): time.sleep(.02)\n"
        "    time.sleep(.05)\n"
        "times = taken()\n"
        "print({path[0]: (t.ns / 1e9, t.calls) for path, t in times.totals.items()})\n"
        "print((times.ended_ns - times.began_ns) / 1e9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, phases.PROFILE: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    totals, whole = map(eval, done.stdout.splitlines())
    assert set(totals) == {phases.STARTING, "call", phases.BETWEEN_CALLS}
    assert totals["call"][1] == 2 and totals["call"][0] >= 0.04
    assert totals[phases.BETWEEN_CALLS][0] >= 0.1
    assert sum(seconds for seconds, _ in totals.values()) == pytest.approx(whole, rel=0.05)
