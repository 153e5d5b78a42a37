"""What belongs to one session of a run: one call of the command."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from rich.console import Console

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_session import Cluster
from toolagent.config import Settings
from toolagent.rollouts.recorder import Recording
from toolagent.run.display import Display
from toolagent.run.start import Start
from toolagent.run.watchdog import Watchdog
from toolagent.trackers import Trackers
from toolagent.trackers.prometheus import RunMetrics


@dataclass
class Session:
    """What a session was asked for, what it runs on, and where it reports and writes.

    Attributes:
        console: what the user sees.
        settings: of the run.
        algorithm_config: of the settings; `execute` fits it to the cluster.
        cluster: what there is to run on.
        folder: to write to, not made yet unless the run is resumed.
        start: what the session begins with.
        trackers: told of every iteration and of the results.
        interrupt: takes in signals.
        display: shows the progress on the console.
        watchdog: warns when learning stands still.
        metrics: published for Prometheus over all restarts of learning: a counter that began again
            would count twice.
        recording: of the training episodes; None if none are recorded.
        ray_since: `perf_counter` when Ray was up, in a resumed run that has not trained again yet.
    """

    console: Console
    settings: Settings
    algorithm_config: AlgorithmConfig
    cluster: Cluster
    folder: RunFolder
    start: Start
    trackers: Trackers
    interrupt: Interrupt
    display: Display = field(init=False)
    watchdog: Watchdog = field(init=False)
    metrics: RunMetrics = field(init=False)
    recording: Recording | None = field(init=False, default=None)
    ray_since: float | None = field(init=False)

    def __post_init__(self) -> None:
        run = self.settings.run
        self.display = Display(self.console, run.stop_env_steps, run.stop_time_s)
        self.watchdog = Watchdog(self.display.event, run.stall_warning_s, run.learner_timeout_s)
        self.metrics = RunMetrics(
            self.folder.path, self.settings.task, run.checkpoint_every_s, enabled=run.metrics
        )
        self.ray_since = time.perf_counter() if self.start.resumed else None
