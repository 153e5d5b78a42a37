"""What a run publishes as Ray metrics, for Prometheus; `cluster/monitoring/` reads it.

Ray's exporter puts `ray_` before each name. The port that it is read from asks for no token.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ray.util.metrics import Counter, Gauge

from toolagent.cli import brief
from toolagent.cluster.ray_internals import actor_manager
from toolagent.figures import FIGURES

PREFIX = "toolagent_"
# Ray exports every 10 s (`RAY_metrics_report_interval_ms`, at least 1 s) what was set since.
_PERIOD_S = 1.0

# Ray's counters can't be 0, and stay after their run has gone. So whatever may stay at 0 is a
# gauge: it shows that 0, and goes with its run.
_OF_ROW = {figure.name: figure.gauge for figure in FIGURES if figure.gauge}  # by column
GAUGES = {gauge.name: gauge.help for gauge in _OF_ROW.values()} | {
    "stages_solved": "Stages all of whose problems were solved at least once",
    "curriculum_events": "Changes of the stage since this session began",
    "accuracy": "Share of fresh problems that the greedy agent solves, for each stage",
    "iteration_seconds": "Seconds of the last iteration, with measuring and certifying",
    "env_runners_configured": "Env runners asked for; the driver itself is one if it plays",
    "env_runners_healthy": "Env runners that answer",
    "learners_configured": "Learners asked for; the driver itself is one if it learns",
    "learners_healthy": "Learners that answer",
    "last_update_timestamp_seconds": "Unix time of the last iteration's end, or of the start",
    "checkpoints": "Checkpoints written since this session began",
    "checkpoint_seconds": "Seconds that writing the last checkpoint took",
    "checkpoint_every_seconds": "Seconds between checkpoints, as configured",
    "last_checkpoint_timestamp_seconds": "Unix time of the last checkpoint, or of the start",
}
COUNTERS = {
    "env_steps": "Env steps since the run began",
    "iterations": "Iterations since the run began",
    "ended": "1 once the session has ended in good order, whatever stopped it",
}


def _optional(method: Callable[..., None]) -> Callable[..., None]:
    """Of `RunMetrics`: called while there are metrics; a failure ends them, and not the run."""

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any) -> None:
        if not self.enabled:
            return
        try:
            method(self, *arguments)
        except Exception as error:
            self.enabled = False
            print(
                f"warning: metrics: {brief(error)}; training goes on without them", file=sys.stderr
            )

    return guarded


def ascii_tag(text: str) -> str:
    """The text as a tag, for which Ray takes ASCII alone: 'né' is 'n%C3%A9'."""
    return "".join(c if c.isascii() else quote(c, errors="surrogateescape") for c in text)


class RunMetrics:
    """A run's metrics; a context manager around a session, over all restarts of learning.

    The loop notes values, which costs microseconds. A thread hands them to Ray once a second:
    Ray drops a gauge that is not set again within two of its exports. Without the thread, an
    iteration of half a minute would leave a gap, and a hung one would look like the end of the run.
    With it, `last_update_timestamp_seconds` falls behind the clock. A driver that died leaves no
    gauge, and no `ended`.

    A failure is reported once on stderr and ends the metrics; training continues.

    The names of the run's folder and of its task are the tags `run` and `task`.
    """

    def __init__(self, folder: Path, task: str, checkpoint_every_s: float, enabled: bool = True):
        self.enabled = enabled
        self._tags = {"run": ascii_tag(folder.resolve().name), "task": ascii_tag(task)}
        now = time.time()
        self._values: dict[str, Any] = {
            "stages_solved": 0,
            "curriculum_events": 0,
            "checkpoints": 0,
            "checkpoint_every_seconds": checkpoint_every_s,
            "last_update_timestamp_seconds": now,
            "last_checkpoint_timestamp_seconds": now,
        }
        self._totals = dict.fromkeys(COUNTERS, 0)
        self._published = dict.fromkeys(COUNTERS, 0)
        self._accuracy: dict[str, float] = {}  # by stage
        self._iteration_began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_publishing, daemon=True, name="metrics")

    def __enter__(self) -> RunMetrics:
        self._start()
        return self

    @_optional
    def _start(self) -> None:
        keys = tuple(self._tags)
        self._gauges: dict[str, Any] = {
            name: Gauge(
                PREFIX + name, text, (*keys, "stage") if name == "accuracy" else keys
            ).set_default_tags(self._tags)
            for name, text in GAUGES.items()
        }
        self._counters: dict[str, Any] = {
            name: Counter(PREFIX + name, text, keys).set_default_tags(self._tags)
            for name, text in COUNTERS.items()
        }
        self._thread.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        failed = kind is not None and issubclass(kind, Exception)  # a second Ctrl-C is none
        self._totals["ended"] = int(not failed)
        self._publish()  # Ray exports once more when the driver leaves

    def begin(self, algorithm: Any) -> None:
        """The first iteration of this algorithm begins."""
        self._iteration_began = time.perf_counter()
        self.note_actors(algorithm)

    @_optional
    def note(self, row: dict[str, Any], stages_solved: int, algorithm: Any) -> None:
        """One iteration: its row of `progress.jsonl`, and how many stages were ever solved. The
        algorithm's actors are counted without a remote call."""
        values = self._values
        for column, gauge in _OF_ROW.items():
            values[gauge.name] = row[column]
        self._accuracy = row["accuracy"]
        self._totals["env_steps"] = row["env_steps"]
        self._totals["iterations"] = row["iteration"]
        now = time.perf_counter()
        values["curriculum_events"] += row["curriculum_event"] is not None
        values["stages_solved"] = stages_solved
        values["iteration_seconds"] = now - self._iteration_began
        values["last_update_timestamp_seconds"] = time.time()
        self._iteration_began = now
        self.note_actors(algorithm)

    @_optional
    def note_actors(self, algorithm: Any) -> None:
        """How many env runners and learners there are, and how many of them answer."""
        group, learners = algorithm.env_runner_group, algorithm.learner_group
        config = algorithm.config
        # Who learns from records has no group; with no remote runner the driver is the only one.
        local = 0 if group is None else 1
        remote = group is not None and bool(config.num_env_runners)
        manager = actor_manager(learners)
        self._values |= {
            "env_runners_configured": config.num_env_runners or local,
            "env_runners_healthy": group.num_healthy_remote_env_runners() if remote else local,
            "learners_configured": config.num_learners or 1,
            "learners_healthy": manager.num_healthy_actors() if manager else 1,
        }

    @_optional
    def note_checkpoint(self, seconds: float) -> None:
        """Notes a complete checkpoint, and the seconds that writing it took."""
        self._values["checkpoints"] += 1
        self._values["checkpoint_seconds"] = seconds
        self._values["last_checkpoint_timestamp_seconds"] = time.time()

    def _keep_publishing(self) -> None:
        while self.enabled and not self._stop.is_set():
            self._publish()
            self._stop.wait(_PERIOD_S)

    @_optional
    def _publish(self) -> None:
        for name, value in self._values.copy().items():  # the loop may add one meanwhile
            self._gauges[name].set(value)  # leaves out what is None
        for stage, accuracy in self._accuracy.items():
            self._gauges["accuracy"].set(accuracy, tags={"stage": stage})
        for name, counter in self._counters.items():
            more = self._totals[name] - self._published[name]
            if more > 0:
                counter.inc(more)
                self._published[name] += more
