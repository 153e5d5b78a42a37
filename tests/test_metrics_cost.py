"""What publishing metrics costs: `python -m pytest -m scaling tests/test_metrics_cost.py -s`."""

import os
import statistics
import time

import pytest
import ray
from alternating import described, paired_ratios

from toolagent.benchmark.rows import RLlibRow, shipped_config
from toolagent.cluster.ray_session import ray_session
from toolagent.trackers.prometheus import RunMetrics

PAIRS, BLOCK_S, WARM_UP_S = 12, 4.0, 5.0
ROW = {
    "iteration": 0,
    "env_steps": 0,
    "env_steps_per_s": 60_000.0,
    "stage": 2,
    "accuracy": {"0": 1.0, "1": 1.0, "2": 0.5},
    "curriculum_event": None,
    "episode_return_mean": 0.5,
    "entropy": 0.5,
    "policy_age_mean": 1.0,
    "learner_idle_share": 0.1,
    "sampler_idle_share": 0.5,
    "dropped_episodes_lifetime": 0.0,
    "lost_requests_lifetime": 0.0,
    "env_runner_restarts_lifetime": 0,
}


class Timed(RunMetrics):
    """Counts the seconds in which the loop, or its interpreter, is held up."""

    spent_s = 0.0

    def note(self, *arguments):
        started = time.perf_counter()
        super().note(*arguments)
        self.spent_s += time.perf_counter() - started

    def _publish(self):
        started = time.thread_time()
        super()._publish()
        self.spent_s += time.thread_time() - started


@pytest.fixture(scope="module")
def row():
    with ray_session(None, dashboard=True) as cluster:
        row = RLlibRow("batched_runners", shipped_config("default", ()), cluster.cpus)
        yield row
        row.close()
    assert not ray.is_initialized()


def block(row, folder, enabled, seconds):
    """Steps/s of a block that trains as a run does, and the share of its time spent on metrics."""
    steps, iterations, began = 0, 0, time.perf_counter()
    with Timed(folder, "calculator", 60.0, enabled=enabled) as metrics:
        while (elapsed := time.perf_counter() - began) < seconds:
            steps += float(row.algorithm.train()["pipeline"]["trained_env_steps"])
            iterations += 1
            metrics.note(ROW | {"iteration": iterations, "env_steps": steps}, 2, row.algorithm)
    return steps / elapsed, metrics.spent_s / elapsed


@pytest.mark.scaling
@pytest.mark.timeout(1200)
def test_publishing_costs_less_than_2_percent_of_steps_per_second(row, tmp_path):
    shares = []

    def one(enabled):
        steps_per_s, share = block(row, tmp_path, enabled, BLOCK_S)
        if enabled:
            shares.append(share)
        return steps_per_s

    ratios = paired_ratios(one, PAIRS, lambda: block(row, tmp_path, True, WARM_UP_S))
    print(
        f"\nsteps/s with metrics over without: {described(ratios)} of {BLOCK_S:g} s; "
        f"seconds spent on metrics: {statistics.median(shares):.3%} of the time; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    assert statistics.median(shares) < 0.01
    assert statistics.median(ratios) > 0.98
