"""What belongs to one session of a run: one call of the command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from rich.console import Console

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_session import Cluster
from toolagent.config import Settings
from toolagent.rollouts.recorder import Recording
from toolagent.run.display import Display
from toolagent.run.profile import Profile
from toolagent.run.start import Start
from toolagent.run.watchdog import Watchdog
from toolagent.trackers import Trackers
from toolagent.trackers.prometheus import RunMetrics


@dataclass
class Session:
    """What a session was asked for, what it runs on, and where it reports and writes."""

    display: Display
    settings: Settings
    algorithm_config: AlgorithmConfig  # of the settings; `execute` fits it to the cluster
    cluster: Cluster
    folder: RunFolder  # not made yet unless the run is resumed
    start: Start
    trackers: Trackers
    interrupt: Interrupt
    profile: Profile | None = None  # if one was asked for
    watchdog: Watchdog = field(init=False)
    # Over all restarts of learning: a counter that began again would count twice.
    metrics: RunMetrics = field(init=False)
    recording: Recording | None = field(init=False, default=None)  # of the training episodes
    summary: dict[str, Any] | None = field(init=False, default=None)  # at the end: the results
    print_results: Callable[[], None] = field(init=False, default_factory=lambda: lambda: None)
    faults: list[str] = field(init=False, default_factory=list)  # why the run has failed
    # `perf_counter` when Ray was up, in a resumed run that has not trained again yet.
    ray_since: float | None = field(init=False)

    def __post_init__(self) -> None:
        run = self.settings.run
        self.display.begin(self.settings)
        self.watchdog = Watchdog(self.display.event, run.stall_warning_s, run.learner_timeout_s)
        self.metrics = RunMetrics(
            self.folder.path, self.settings.task, run.checkpoint_every_s, enabled=run.metrics
        )
        self.ray_since = time.perf_counter() if self.start.resumed else None

    @property
    def console(self) -> Console:
        """Standard output."""
        return self.display.console

    def fail(self, fault: str) -> None:
        """Says on stderr why the run has failed, and keeps it."""
        self.faults.append(fault)
        print(f"error: {fault}", file=sys.stderr)
