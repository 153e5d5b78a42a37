"""What Chrome's trace event format asks of a trace, read without the code that writes it."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import pytest

ROUNDING_US = 0.002


def extent(events):
    """(begin, length) of a thread's events, in microseconds: the begin is negative if it is
    before the trace's zero."""
    begin = min(event["ts"] for event in events)
    return begin, max(event["ts"] + event["dur"] for event in events) - begin


def check_trace(trace, left_out=0.05):
    """The events of each process's main thread by the process's name, in order.

    Every process and thread has a name, events of a thread lie within or beside each other, and
    the outermost ones of a main thread leave out no more than that share of its time.
    """
    json.dumps(trace, allow_nan=False)
    names, threads, events = {}, {}, defaultdict(list)
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert 0 < event["tid"] < 2**32, "Perfetto takes 32 bits"
        if event["ph"] == "M":
            if event["name"] == "process_name":
                assert event["pid"] not in names
                names[event["pid"]] = event["args"]["name"]
            if event["name"] == "thread_name":
                threads[event["pid"], event["tid"]] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and event["name"]
        assert event["dur"] >= 0 and 0 <= event["tdur"] <= event["dur"] + 1e5
        events[event["pid"], event["tid"]].append(event)
    assert {process for process, _ in events} == set(names)
    assert set(events) <= set(threads)
    for (process, thread), of_thread in events.items():
        of_thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        outermost = check_nesting(of_thread)
        if process == thread:
            covered = sum(event["dur"] for event in outermost)
            assert covered == pytest.approx(extent(of_thread)[1], rel=left_out)
    return {names[process]: of for (process, thread), of in events.items() if process == thread}


def check_nesting(events):
    """Those that lie in no other one."""
    outermost, around = [], []
    for event in events:
        end = event["ts"] + event["dur"]
        while around and around[-1] <= event["ts"] + ROUNDING_US:
            around.pop()
        assert not around or end <= around[-1] + ROUNDING_US, event
        if not around:
            outermost.append(event)
        around.append(end)
    for before, after in itertools.pairwise(outermost):
        assert before["ts"] + before["dur"] <= after["ts"] + ROUNDING_US
    return outermost
