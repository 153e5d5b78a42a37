"""The watchdog says when learning stands still, and when it goes on."""

from __future__ import annotations

import time
from types import SimpleNamespace

from toolagent.run.watchdog import Watchdog


def wait_for(said, words, timeout=20):
    deadline = time.monotonic() + timeout
    while not any(words in line for line in said):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def test_it_warns_rarely_and_says_when_learning_goes_on():
    said = []
    algorithm = SimpleNamespace(updates=3)
    with Watchdog(said.append, warn_after_s=0.5, learner_timeout_s=60) as watchdog:
        watchdog.watch(algorithm)
        for _ in range(40):  # as long as updates are made, it is silent
            time.sleep(0.02)
            algorithm.updates += 1
        assert said == []
        time.sleep(2.5)
        warnings = [line for line in said if line.startswith("warning: no update for")]
        assert 2 <= len(warnings) <= 4  # after 0.5, 1 and 2 s
        algorithm.updates += 1
        wait_for(said, "goes on after")
    count = len(said)
    time.sleep(0.5)
    assert len(said) == count  # it has ended


def test_it_says_what_takes_so_long():
    said = []
    with Watchdog(said.append, warn_after_s=0.2, learner_timeout_s=60) as watchdog:
        wait_for(said, "warning: starting env runners and learners for")
        watchdog.watch(SimpleNamespace(updates=0))
        with watchdog.during("certifying"):
            wait_for(said, "warning: certifying for")
