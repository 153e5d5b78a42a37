"""Phases: what is measured, what is kept, and what a profile makes of it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time

import pytest
from traces import check_trace, extent

from toolagent import phases
from toolagent.phases import main_phase, phase, recording, taken, timed
from toolagent.run.profile import Profile, trace

TOLERANCE_S = 0.05  # this machine has other work


def sleep(name, seconds):
    with phase(name):
        time.sleep(seconds)


def recording_of_a_young_process(patch):
    """The tests' own may be so old that everything in it is a small part."""
    patch.setattr(phases, "_age_of_process_ns", lambda: 100_000_000)
    return recording()


@pytest.fixture(scope="module")
def times():
    """Of this process: a main phase with three phases in it, and a thread beside it."""
    with pytest.MonkeyPatch.context() as patch, recording_of_a_young_process(patch):
        main_phase("work")
        with phase("outer") as outer:
            sleep("inner", 0.02)
            sleep("inner", 0.03)
            outer.parts = {"this": 0.01, "that": 0.02}
            main_phase("is not begun within a phase")
        thread = threading.Thread(target=sleep, args=("beside", 0.01), name="another")
        thread.start()
        thread.join()
        with pytest.raises(ValueError), phase("fails"):
            time.sleep(0.01)
            raise ValueError
        main_phase("more work")
        timed("decorated")(sleep)("inner", 0.01)
        main_phase("")
        return taken()


def seconds_of(times, *path):
    return times.totals[path].ns / 1e9


def test_a_phase_tells_its_seconds_and_nothing_is_kept_without_a_recording():
    with phase("one") as one:
        time.sleep(0.02)
    assert one.seconds == pytest.approx(0.02, abs=TOLERANCE_S)
    assert taken() is None
    assert phases.PROFILE not in os.environ


def test_phases_are_counted_where_they_lie(times):
    assert seconds_of(times, "work", "outer", "inner") == pytest.approx(0.05, abs=TOLERANCE_S)
    assert times.totals["work", "outer", "inner"].calls == 2
    assert times.totals["work", "outer", "inner"].cpu_ns < 20e6  # it slept
    assert seconds_of(times, "work", "outer", "that") == 0.02
    assert seconds_of(times, "work", "fails") >= 0.01
    assert seconds_of(times, "more work", "decorated", "inner") >= 0.01
    assert {path[0] for path in times.totals} == {phases.STARTING, "work", "more work"}


def test_the_outermost_phases_add_up_to_the_time_of_the_process(times):
    whole = (times.ended_ns - times.began_ns) / 1e9
    outermost = sum(seconds_of(times, *path) for path in times.totals if len(path) == 1)
    assert outermost == pytest.approx(whole, abs=TOLERANCE_S)


def table_of(processes):
    return Profile(dict(processes)).table()


def test_the_rows_of_the_table_add_up_and_fit_a_terminal(times):
    table = table_of({"driver": times})
    title, *rows = table.splitlines()
    whole = float(title.split(": ")[1].split(" s ")[0])
    shares = [row[36:].split() for row in rows if row and not row.startswith(" ")]
    assert sum(float(cells[0]) for cells in shares) == pytest.approx(whole, abs=0.02)
    assert sum(float(cells[1]) for cells in shares) == pytest.approx(100, abs=0.5)
    assert rows[-1].startswith("other")
    assert max(map(len, table.splitlines())) <= 80


def test_processes_of_a_kind_are_shown_as_their_mean(times):
    twice = dataclasses.replace(
        times,
        totals={p: dataclasses.replace(t, ns=3 * t.ns) for p, t in times.totals.items()},
        ended_ns=times.began_ns + 3 * (times.ended_ns - times.began_ns),
    )
    lines = table_of({"env runner 1": times, "env runner 2": twice}).splitlines()
    whole = 2 * (times.ended_ns - times.began_ns) / 1e9
    assert lines[0].startswith(f"env runners, mean of 2: {whole:.2f} s")
    inner = next(line for line in lines if line.startswith("    inner"))
    cells = [float(cell) for cell in inner[36:].split()]
    assert cells[0] == pytest.approx(2 * seconds_of(times, "work", "outer", "inner"), abs=0.006)
    assert cells[3] == 2


def test_the_trace_is_valid_and_places_processes_of_other_machines_by_their_wall_clocks(times):
    away = dataclasses.replace(
        times,
        machine="another",  # which was started 1,000 s earlier, so its clock shows more
        wall_clock_ns=times.wall_clock_ns - 1_000_000_000_000,
        began_ns=times.began_ns + 1_002_000_000_000,
        spans=[s._replace(began_ns=s.began_ns + 1_002_000_000_000) for s in times.spans],
    )
    written = trace({"driver": times, "env runner 1": times, "env runner 2": away})
    found = check_trace(written)
    assert list(found) == ["driver", "env runner 1", "env runner 2"]
    names = {event["args"].get("name") for event in written["traceEvents"] if event["ph"] == "M"}
    assert {"main", "another"} <= names
    here, there = extent(found["env runner 1"]), extent(found["env runner 2"])
    assert here[0] == pytest.approx(0, abs=1)
    assert there[0] == pytest.approx(2e6, abs=1e3)
    outer = next(event for event in found["driver"] if event["name"] == "outer")
    assert outer["args"] == {"this, ms": pytest.approx(10), "that, ms": pytest.approx(20)}


def test_a_long_run_s_trace_is_bounded_and_its_table_is_not(monkeypatch):
    monkeypatch.setattr(phases, "MOST_SPANS", 10)
    monkeypatch.setattr(phases, "LONG_NS", 10_000_000)
    with recording():
        for _ in range(50):
            sleep("short", 0)
        sleep("long", 0.02)
        times = taken()
    assert times.totals[("short",)].calls == 50
    assert len(times.spans) + times.spans_left_out == 52  # with the start
    assert times.spans[-1].name == "long" and len(times.spans) <= 20


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
