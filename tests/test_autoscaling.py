"""The groups and the times of `aws.yaml` and `gcp.yaml`, with Ray's autoscaler and raylets here.

`pytest -m cluster_real`. Ray's provider of nodes on one machine takes the cloud's place: a node is
a raylet that declares what the recipe says of its group. Nothing is known here of a cloud.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time

import psutil
import pytest
import yaml
from machines import slowness
from ray_clusters import is_runner
from test_run import rows_of, summary_of
from test_submitted_job import HEAD_TYPE, AutoscaledCluster, Job, environment
from trained import ROOT

__all__ = ["environment"]  # a fixture
pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(2400)]

RUNNERS = 8  # of those that the 32 CPUs would take; each is a process of this machine


def groups_of(recipe):
    """What the autoscaler is told of the recipe, and the head's GPUs."""
    types = recipe["available_node_types"]
    head = types.pop("head")
    node_types = {
        name: {key: group[key] for key in ("resources", "min_workers", "max_workers")}
        | {"node_config": {}}
        for name, group in types.items()
    }
    node_types[HEAD_TYPE] = {
        "resources": head["resources"],
        "node_config": {},
        "max_workers": 0,
    }
    times = ("max_workers", "upscaling_speed", "idle_timeout_minutes")
    told = {key: recipe[key] for key in times} | {"available_node_types": node_types}
    return told, head["resources"].get("GPU", 0)


def resources_of(raylet):
    """(CPUs, GPUs) that a node declares."""
    line = " ".join(raylet.cmdline())
    listed = re.search(r"--static_resource_list=(\S+)", line)[1].split(",")
    declared = dict(zip(listed[::2], listed[1::2], strict=True))
    return int(float(declared.get("CPU", 0))), int(float(declared.get("GPU", 0)))


def nodes(cluster):
    """What each node declares, sorted."""
    found = []
    for raylet in cluster.raylets():
        with contextlib.suppress(psutil.Error):
            found.append(resources_of(raylet))
    return sorted(found)


def spot_node(cluster):
    """One with env runners and without the learner."""
    for raylet in cluster.raylets():
        children = raylet.children()
        names = [" ".join(child.cmdline()) for child in children]
        if any(map(is_runner, children)) and not any("earner" in name for name in names):
            return raylet
    raise AssertionError("no node has env runners alone")


@pytest.mark.parametrize(
    ("name", "grown"),
    [
        ("aws.yaml", [(0, 0), (0, 1), (8, 0), (8, 0), (8, 0), (8, 0)]),
        ("gcp.yaml", [(0, 1), (8, 0), (8, 0), (8, 0), (8, 0)]),
    ],
)
def test_a_recipe_s_groups_grow_for_a_run_and_go_after_it(environment, tmp_path, name, grown):
    recipe = yaml.safe_load((ROOT / "cluster" / name).read_text())
    told, head_gpus = groups_of(recipe)
    environment = environment | {"RAY_JOB_STOP_WAIT_TIME_S": "300"}
    cluster = AutoscaledCluster(environment, tmp_path, told, head_gpus)
    folder = tmp_path / "run"

    def rows():
        return rows_of(folder) if (folder / "progress.jsonl").is_file() else []

    try:
        idle = [(0, head_gpus)]
        cluster.wait_for(lambda: nodes(cluster) == idle, 90 * slowness())
        started = time.monotonic()
        job = Job(
            environment,
            cluster.dashboard,
            *("--cpus", 32, "--gpus", 1, "--", "--config", "expression"),
            *("--num-env-runners", RUNNERS, "--num-learners", 1, "--num-gpus-per-learner", 0),
            *("--output-dir", folder, "--set", "run.checkpoint_every_s=10"),
        )
        cluster.wait_for(lambda: nodes(cluster) == grown, 300 * slowness())
        print(f"\n{name}: {len(grown)} nodes {time.monotonic() - started:.0f} s after submit.sh")
        cluster.wait_for(lambda: len(rows()) >= 2, 400 * slowness())
        counts = cluster.runners()
        assert sum(counts) == RUNNERS and counts[-4:] == [2, 2, 2, 2]

        lost = spot_node(cluster)
        taken = [lost, *lost.children(recursive=True)]
        taken_at, before = time.monotonic(), len(rows())
        for process in taken:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        cluster.wait_for(
            lambda: sum(cluster.runners()) == RUNNERS and len(rows()) > before, 300 * slowness()
        )
        print(f"{name}: a spot node's env runners back after {time.monotonic() - taken_at:.0f} s")
        cluster.wait_for(lambda: nodes(cluster) == grown, 300 * slowness())
        print(f"{name}: a node in its place after {time.monotonic() - taken_at:.0f} s", flush=True)
        (row,) = rows()[-1:]
        assert row["env_steps"] > rows()[before - 1]["env_steps"]

        (known,) = job.jobs()
        stop = ["ray", "job", "stop", "--address", cluster.dashboard, known["submission_id"]]
        subprocess.run(stop, env=environment, check=True, capture_output=True, timeout=400)
        assert job.watch(lambda: None)[-1] == "STOPPED"
        ended = time.monotonic()
        assert summary_of(folder)["stopped_by"] == "interrupted"
        idle_s = recipe["idle_timeout_minutes"] * 60
        time.sleep(idle_s * 0.8)
        # Those that played until the end; who was idle before has waited its time already.
        assert nodes(cluster).count((8, 0)) >= 3
        cluster.wait_for(lambda: nodes(cluster) == idle, idle_s)
        print(f"{name}: idle nodes gone {time.monotonic() - ended:.0f} s after the job's end")
    finally:
        cluster.stop()
