"""What full recording costs: `python -m pytest -m scaling tests/test_recording_cost.py -s`."""

import functools
import os
import statistics
import sys
import time

import pytest
import ray
from alternating import described, paired_ratios

from toolagent.benchmark.rows import RLlibRow, shipped_config
from toolagent.cluster.ray_session import ray_session
from toolagent.rollouts.recorder import EpisodeRecorder, Recording
from toolagent.rollouts.records import count_episodes

PAIRS, BLOCK_S, WARM_UP_S = 12, 5.0, 5.0
# The env runners' processes can't import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def row():
    with ray_session(None, dashboard=False) as cluster:
        row = RLlibRow("batched_runners", shipped_config("default", ()), cluster.cpus)
        yield row
        row.close()
    assert not ray.is_initialized()


def start(recording, num_env_runners, runner):
    """From the next fragment on everything is recorded."""
    runner.recorder = EpisodeRecorder(
        recording, runner.env.task, runner.worker_index, num_env_runners
    )


def finish(runner):
    """Writes what waits; nothing is recorded any more."""
    runner.recorder.flush()
    assert runner.recorder.status().fault is None
    runner.recorder = None


def block(row, folder, recorded, seconds):
    """Steps/s of a block; what is recorded in it is on disk before the clock stops."""
    recording = Recording(str(folder), f"cost-{time.monotonic_ns()}", seconds_per_file=2.0)
    group = row.algorithm.env_runner_group
    steps, began = 0.0, time.perf_counter()
    if recorded:
        group.foreach_env_runner(functools.partial(start, recording, row.num_env_runners))
    while time.perf_counter() - began < seconds:
        steps += float(row.algorithm.train()["pipeline"]["trained_env_steps"])
    if recorded:
        group.foreach_env_runner(finish)
    elapsed = time.perf_counter() - began
    episodes, _ = count_episodes(str(folder), recording.run_id)
    assert episodes > 1000 if recorded else episodes == 0
    return steps / elapsed


@pytest.mark.scaling
@pytest.mark.timeout(1200)
def test_full_recording_costs_less_than_5_percent_of_steps_per_second(row, tmp_path):
    ratios = paired_ratios(
        lambda recorded: block(row, tmp_path, recorded, BLOCK_S),
        PAIRS,
        lambda: block(row, tmp_path, True, WARM_UP_S),
    )
    print(
        f"\nsteps/s with recording over without: {described(ratios)} of {BLOCK_S:g} s; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    assert statistics.median(ratios) > 0.95
