"""One cluster of eight raylets and up to 32 env runners on this machine: what grows with runners.

`pytest -m cluster_real -s`, as root: ten minutes. All is in a network namespace of its own, so that
what the loopback device counts is this cluster's. `cluster/README.md`, Scale on paper, has the
figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from machines import slowness
from processes import kill
from ray_clusters import RayCluster, cluster_environment, is_runner
from test_cluster_run import runners, start_run
from test_run import rows_of

pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(1500)]

NODES = 8
PATIENT = {"health_check_failure_threshold": 60}  # a busy machine answers late
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
UPDATES_PER_ITERATION = 10  # as in rllib_configs/default.yaml


@contextlib.contextmanager
def own_network():
    """Inside, this thread and what it starts have a network with nothing but a loopback device."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        assert libc.setns(before, NEW_NETWORK) == 0
        os.close(before)


def sent():
    """(bytes, packets) that the loopback device has sent."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("lo:")]
    fields = line.partition(":")[2].split()
    return int(fields[8]), int(fields[9])


def cpu_s(process):
    times = process.cpu_times()
    return times.user + times.system


class Look:
    """What the run has used up to now."""

    def __init__(self, driver, cluster, folder):
        self.at, self.row = time.monotonic(), rows_of(folder)[-1]
        self.bytes, self.packets = sent()
        self.driver = cpu_s(driver)
        everyone = psutil.Process(cluster.process.pid).children(recursive=True)
        self.runners, self.ray = 0.0, 0.0
        for process in everyone:
            with contextlib.suppress(psutil.Error):
                if is_runner(process):
                    self.runners += cpu_s(process)
                elif "earner" not in "".join(process.cmdline()[:1]):
                    self.ray += cpu_s(process)


def kind_of(process):
    """What a process of the cluster is there for."""
    line = process.cmdline()
    words = " ".join(line)
    if is_runner(process):
        return "env runners"
    if "toolagent.run" in line:
        return "driver"
    if "earner" in line[0]:
        return "learner"
    if line[0] == "ray::IDLE":
        return "workers that nothing uses"
    if os.path.basename(line[0]) in ("raylet", "gcs_server"):
        return os.path.basename(line[0])
    return "agents of nodes" if "gent" in words else "others"


def print_kinds(processes):
    """How many there are of each kind, the CPU time that they have used, their memory."""
    kinds = {}
    for process in processes:
        with contextlib.suppress(psutil.Error, IndexError):
            kinds.setdefault(kind_of(process), []).append((cpu_s(process), memory_mb([process])))
    for kind, used in sorted(kinds.items()):
        seconds, memory = (sum(each) / len(used) for each in zip(*used, strict=True))
        print(f"  {len(used)} {kind}: each {seconds:.1f} s of CPU and {memory:.0f} MB")


def memory_mb(processes):
    """Each one's proportional share of what it has in memory, summed."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def measure(cluster, tmp_path, number, seconds):
    """A run with that many env runners: what an update costs, and where."""
    folder = tmp_path / f"run-{number}"
    started = time.monotonic()
    process = start_run(
        cluster,
        *("--num-env-runners", number, "--num-learners", 1, "--output-dir", folder),
        *("--set", "run.stop_when_solved=false", "--set", "run.sample_trajectories=0"),
        cwd=tmp_path,
    )
    try:
        progress = folder / "progress.jsonl"
        while not (progress.is_file() and len(rows_of(folder)) >= 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - started < 300 * slowness()
            time.sleep(0.2)
        first_rows = time.monotonic() - started
        everyone = psutil.Process(cluster.process.pid).children(recursive=True)
        print(f"{number} env runners, two rows after {first_rows:.0f} s; up to then:")
        print_kinds([psutil.Process(process.pid), *everyone])
        where = runners(cluster)
        assert where.pop("head") == 0
        assert sum(where.values()) == number
        assert max(where.values()) - min(where.values()) <= 1
        driver = psutil.Process(process.pid)
        before = Look(driver, cluster, folder)
        time.sleep(seconds)
        after = Look(driver, cluster, folder)
        everyone = psutil.Process(cluster.process.pid).children(recursive=True)
        actors = [each for each in everyone if is_runner(each)]
        runner_mb, driver_mb = memory_mb(actors) / number, memory_mb([driver])
        rest_mb = memory_mb([each for each in everyone if each not in actors])
    finally:
        kill(process)
    updates = (after.row["iteration"] - before.row["iteration"]) * UPDATES_PER_ITERATION
    steps = after.row["env_steps"] - before.row["env_steps"]
    span = after.at - before.at
    figures = {
        "updates": updates,
        "env steps/s": steps / span,
        "driver, ms of CPU an update": (after.driver - before.driver) / updates * 1e3,
        "env runners, ms of CPU an update": (after.runners - before.runners) / updates * 1e3,
        "Ray's own processes, CPUs": (after.ray - before.ray) / span,
        "packets/s": (after.packets - before.packets) / span,
        "packets an update": (after.packets - before.packets) / updates,
        "bytes an env step": (after.bytes - before.bytes) / steps,
        "MB an env runner": runner_mb,
        "MB of the driver": driver_mb,
        "MB of all others": rest_mb,
    }
    print(f"{number} env runners, once they play:")
    for name, value in figures.items():
        print(f"  {name}: {value:,.1f}", flush=True)
    row = after.row
    assert updates > 0
    lost = (
        "env_runner_restarts_lifetime",
        "hung_env_runners_lifetime",
        "learner_restarts_lifetime",
    )
    assert [row[name] for name in lost] == [0, 0, 0]


def test_what_grows_with_the_env_runners(tmp_path):
    with own_network(), cluster_environment(tmp_path) as environment:
        before, started = slowness(), time.monotonic()
        cluster = RayCluster(environment, {}, health_checks=PATIENT)
        try:
            # In turn: Ray gives each 30 s to come up.
            for number in range(NODES):
                cluster.order(add=f"node{number}", **{"with": {"num_cpus": 5}})
            seconds = time.monotonic() - started
            print(f"\n{NODES} raylets after {seconds:.0f} s, {before:.1f} programs a CPU before")
            processes = psutil.Process(cluster.process.pid).children(recursive=True)
            print(f"without a run: {memory_mb(processes):.0f} MB in {len(processes)} processes")
            print_kinds(processes)
            for number, seconds in ((32, 180), (8, 60), (2, 40)):
                measure(cluster, tmp_path, number, seconds)
        finally:
            cluster.stop()
