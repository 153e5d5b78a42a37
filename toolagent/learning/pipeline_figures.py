"""What an iteration of the pipeline did and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolagent.rollouts.env_runner import Fragment


@dataclass
class PipelineFigures:
    """Sums over one iteration; `log` turns them into metrics.

    Seconds of the driver: `wait_s` for episodes (the learner is idle), `learn_s` for gradient
    steps, `sync_s` for publishing weights. Seconds of the runners: `inference_s`, `machine_s`,
    `busy_s` in all, `idle_s` between two calls.
    """

    wait_s: float = 0.0
    learn_s: float = 0.0
    sync_s: float = 0.0
    busy_s: float = 0.0
    idle_s: float = 0.0
    inference_s: float = 0.0
    machine_s: float = 0.0
    env_steps: int = 0  # sampled
    trained_env_steps: int = 0  # learned from: explorers' and dropped ones are not
    episodes: int = 0
    transfer_bytes: int = 0
    dropped_episodes: int = 0  # played, but too old to be learned from
    lost_requests: int = 0  # died with their runner, or were given up
    rejected_batches: int = 0  # fragments that can't be what was played
    rejected_episodes: int = 0  # in them; counted nowhere else
    hung_env_runners: int = 0  # at one request for longer than `sample_timeout_s`
    env_runner_restarts: int = 0  # new processes that play, whatever ended the ones before
    skipped_updates: int = 0  # gradient steps that would not have been numbers
    ages: list[int] = field(default_factory=list)  # updates, one entry a fragment

    def add(self, fragment: Fragment, age: int) -> None:
        """Counts one fragment that is learned from."""
        self.busy_s += fragment.busy_s
        self.idle_s += fragment.idle_s
        self.inference_s += fragment.times.inference_s
        self.machine_s += fragment.times.machine_s
        self.env_steps += fragment.batch.env_steps
        self.episodes += len(fragment.batch)
        self.transfer_bytes += fragment.batch.nbytes
        self.ages.append(age)

    def drop(self, fragment: Fragment) -> None:
        """Counts one fragment that came too late: sampled, but not learned from."""
        self.env_steps += fragment.batch.env_steps
        self.dropped_episodes += len(fragment.batch)

    def reject(self, fragment: Fragment) -> None:
        """Counts one fragment of which nothing is used, its own counts included."""
        self.rejected_batches += 1
        self.rejected_episodes += len(fragment.batch)

    def log(self, metrics: Any, key: str) -> None:
        """Writes the iteration's figures to RLlib's MetricsLogger under `key`."""
        driver_s = self.wait_s + self.learn_s + self.sync_s
        runners_s = self.busy_s + self.idle_s
        latest = {
            "learner_idle_share": self.wait_s / driver_s if driver_s else 0.0,
            "sampler_idle_share": self.idle_s / runners_s if runners_s else 0.0,
            "policy_age_mean": sum(self.ages) / len(self.ages) if self.ages else 0.0,
            "policy_age_max": max(self.ages, default=0),
            "bytes_per_env_step": self.transfer_bytes / self.env_steps if self.env_steps else 0.0,
        }
        for name, value in latest.items():
            metrics.log_value((key, name), value, window=1)
        for name in ("wait_s", "learn_s", "sync_s", "busy_s", "idle_s", "inference_s", "machine_s"):
            metrics.log_value((key, name), getattr(self, name), reduce="sum")
        for name in (
            "env_steps",
            "trained_env_steps",
            "episodes",
            "dropped_episodes",
            "lost_requests",
            "rejected_batches",
            "rejected_episodes",
            "hung_env_runners",
            "env_runner_restarts",
            "skipped_updates",
        ):
            metrics.log_value((key, name), getattr(self, name), reduce="sum")
            metrics.log_value((key, f"{name}_lifetime"), getattr(self, name), reduce="lifetime_sum")
