"""`cluster/submit.sh` against real clusters on this machine: a job with a token, an autoscaler."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from processes import free_port
from ray_clusters import TOKEN, RayCluster, cluster_environment, is_runner
from test_run import rows_of, summary_of
from trained import ROOT

HEAD_ID, HEAD_TYPE = "FAKE_HEAD_NODE_ID", "ray.head.default"  # as Ray's fake provider has them


@pytest.fixture
def environment(tmp_path):
    """As in an image of toolagent's (`cluster/Containerfile`): each node can import it."""
    with cluster_environment(tmp_path) as variables:
        path = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
        yield variables | {"PYTHONPATH": str(ROOT), "PATH": path}


class Job:
    """`cluster/submit.sh`, and what the job API says of the job."""

    def __init__(self, environment, dashboard, *arguments):
        self.dashboard = dashboard
        self.arguments, self.environment = arguments, environment
        self.process = self.submit()
        self.again_if_too_early()

    def submit(self):
        return subprocess.Popen(
            [ROOT / "cluster" / "submit.sh", *map(str, self.arguments)],
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.dashboard},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            start_new_session=True,
        )

    def jobs(self, token=TOKEN):
        """The submitted ones."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return [job for job in json.load(reply) if job["type"] == "SUBMISSION"]

    def again_if_too_early(self, seconds=90):
        """Submits once more while the head's agent, which takes jobs in, is not up yet."""
        deadline = time.monotonic() + seconds
        while not self.jobs():
            if self.process.poll() is None:
                time.sleep(0.2)
                continue
            said = self.output()
            assert "No available agent" in said and time.monotonic() < deadline, said
            self.process = self.submit()

    def watch(self, each_time, seconds=400):
        """Asks until the job has ended; returns what it was in, in turn: [..., 'SUCCEEDED']."""
        seen = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for job in self.jobs():
                if job["status"] not in seen[-1:]:
                    seen.append(job["status"])
            each_time()
            if seen and seen[-1] in ("SUCCEEDED", "FAILED", "STOPPED"):
                return seen
            time.sleep(0.2)
        raise AssertionError(f"not ended: {seen}; {self.output()}")

    def output(self):
        """What submit.sh printed: the job's own lines among it."""
        try:
            return self.process.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.communicate()[0]


def check_certified(folder):
    summary = summary_of(folder)
    assert summary["stopped_by"] == "solved"
    assert [stage["solved"] for stage in summary["stages"]] == [1_000, 10_000, 100_000]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_job_is_submitted_with_a_token_and_watched_until_it_succeeds(environment, tmp_path):
    # One node: several on one machine share a folder, and each would put the job's files there
    # anew, and take the job's working folder away from under it.
    cluster = RayCluster(environment, {}, num_cpus=2, include_dashboard=True)
    folder = tmp_path / "run"
    try:
        job = Job(
            environment,
            cluster.dashboard,
            *("--cpus", 2, "--", "--num-env-runners", 1, "--output-dir", folder),
            *("--set", "run.sample_trajectories=1"),
        )
        try:
            statuses = job.watch(lambda: None)
        finally:
            output = job.output()
        assert statuses[-1] == "SUCCEEDED", output
        assert "RUNNING" in statuses
        for token, code in ((None, 401), ("f" * 64, 403)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                job.jobs(token)
            assert refused.value.code == code
    finally:
        cluster.stop()
    assert job.process.returncode == 0, output
    check_certified(folder)
    # What the run says is in the job's log, and nothing else that warns.
    assert "certified, all 100,000 problems solved" in output
    assert "Traceback" not in output and TOKEN not in output


# Autoscaling -----------------------------------------------------------------------------


class AutoscaledCluster:
    """A head without CPUs, and an autoscaler that adds raylets of one CPU, at most 3; or the
    groups of a recipe, which `ray up` would take.
    """

    def __init__(self, environment, tmp_path, recipe=None, head_gpus=0):
        gcs, dashboard, client = free_port(), free_port(), free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect(("192.0.2.1", 9))  # sends nothing; tells this machine's address
            host = asked.getsockname()[0]
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        settings = tmp_path / "autoscaling.json"
        settings.write_text(json.dumps(autoscaling(f"{host}:{gcs}", recipe or {})))
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        self.log = (tmp_path / "ray-start.log").open("w")
        self.process = subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--num-cpus=0", f"--num-gpus={head_gpus}"),
                f"--node-ip-address={host}",
                *(f"--port={gcs}", f"--autoscaling-config={settings}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0"),
            ],
            env=environment | fake,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
        self.wait_for(lambda: self._answers(), 90)

    def _answers(self):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            request = urllib.request.Request(
                f"{self.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
            )
            return urllib.request.urlopen(request, timeout=5).status == 200
        return False

    def wait_for(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, Path(self.log.name).read_text()
            time.sleep(0.1)

    def _processes(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def raylets(self):
        """The process of each node, the head's included."""
        found = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                if os.path.basename((process.cmdline() or [""])[0]) == "raylet":
                    found.append(process)
        return found

    def runners(self):
        """Env runners on each node, the head's included, read off the machine's processes."""
        counts = []
        for raylet in self.raylets():
            with contextlib.suppress(psutil.Error):
                counts.append(sum(map(is_runner, raylet.children())))
        return sorted(counts)

    def stop(self):
        mine = self._processes()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in [*mine, self.process]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.kill()
        self.process.wait()
        self.log.close()


def autoscaling(address, recipe):
    """What a cluster YAML holds, with Ray's provider of nodes on this machine."""
    node_types = {
        HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "runner": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    }
    settings = {
        "cluster_name": "test",
        "max_workers": 3,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "available_node_types": node_types,
        "head_node_type": HEAD_TYPE,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    return settings | recipe


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_autoscaler_brings_nodes_for_the_runners_and_takes_them_away_again(
    environment, tmp_path
):
    if shutil.which("ray", path=environment["PATH"]) is None:
        pytest.skip("needs the command 'ray' beside this Python")
    cluster = AutoscaledCluster(environment, tmp_path)
    folder = tmp_path / "run"
    try:
        cluster.wait_for(lambda: cluster.runners() == [0], 60)  # the head alone
        started = time.monotonic()
        job = Job(
            environment,
            cluster.dashboard,
            *("--cpus", 3, "--", "--num-env-runners", 3, "--output-dir", folder),
            *("--set", "run.sample_trajectories=1"),
        )
        most, up = [], None

        def look():
            nonlocal most, up
            counts = cluster.runners()
            if len(counts) == 4 and up is None:
                up = time.monotonic() - started
            most = max(most, counts, key=sum)

        try:
            statuses = job.watch(look, 300)
        finally:
            output = job.output()
        ended = time.monotonic()
        assert statuses[-1] == "SUCCEEDED", output
        assert most == [0, 1, 1, 1]  # a runner on each node that was added, none on the head
        cluster.wait_for(lambda: cluster.runners() == [0], 120)
        down = time.monotonic() - ended
    finally:
        cluster.stop()
    check_certified(folder)
    assert rows_of(folder)
    print(f"3 nodes up {up:.1f} s after the job was submitted, down {down:.1f} s after its end")
