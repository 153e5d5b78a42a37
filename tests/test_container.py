"""`cluster/Containerfile`, built and run, and pods of `cluster/kubernetes/`.

As root: `pytest -m cluster_real`. A pod's containers, environment, limits and volumes are those of
the manifest; what the operator of KubeRay adds is added in `pods.py`. podman starts them here.
"""

from __future__ import annotations

import re
import shlex
import time

import pytest
from containers import BASE, IMAGE, Containers, wait_for
from pods import Cluster, entrypoint
from processes import ROOT
from test_run import rows_of, summary_of

pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(2400)]

HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    podman = Containers(tmp_path_factory.mktemp("containers"))
    try:
        podman.build()
        yield podman
    finally:
        podman.end()


def docker_run():
    """The options, and the command, of `docker run` in the Containerfile's header."""
    text = (ROOT / "cluster" / "Containerfile").read_text()
    line = re.search(r"docker run --rm (.*?)\n#   docker", text, re.DOTALL)[1]
    options, command = re.sub(r"\\\n#", "", line).split("REGISTRY/toolagent:0.1")
    return shlex.split(options), shlex.split(command)


def run(containers, name, options, command):
    containers.start(name, *HARDENED, *options, IMAGE, *command)


def rows(folder):
    return rows_of(folder) if (folder / "progress.jsonl").is_file() else []


def test_the_header_s_commands(containers):
    options, command = docker_run()
    where = options.index("-v") + 1
    volume = containers.volume("toolagent-test-results")
    options[where] = f"toolagent-test-results:{options[where].partition(':')[2]}"
    run(containers, "toolagent-test-run", options, command)
    folder = volume / "first"
    wait_for(lambda: rows(folder))
    inside = ("exec", "toolagent-test-run", "bash", "-c")
    seen = containers.podman(*inside, "id -u; echo $HOME; df --output=size -k /dev/shm | tail -1")
    assert seen.split() == ["1000", "/home/ray", str(3 * 1024**2)]
    raylet = containers.podman(*inside, "tr '\\0' ' ' </proc/$(pgrep -x raylet)/cmdline")
    assert "--plasma_directory=/dev/shm" in raylet
    wait_for(lambda: containers.state("toolagent-test-run") == ("exited", 0))
    said = containers.podman("logs", "toolagent-test-run")
    assert "Traceback" not in said and "atplotlib" not in said
    assert {path.stat().st_uid for path in folder.rglob("*")} == {1000}

    evaluate = ("python", "-m", "toolagent.evaluate", "/results/first")
    said = containers.podman("run", "--rm", *HARDENED, *options, IMAGE, *evaluate)
    assert summary_of(folder)["checkpoint"] in said

    # The signal of `docker stop`: a checkpoint, and --resume goes on from it.
    command = [*command[:-4], "--config", "expression", "--output-dir", "/results/second"]
    run(containers, "toolagent-test-stop", options, command)
    folder = volume / "second"
    wait_for(lambda: len(rows(folder)) >= 3)
    containers.podman("stop", "toolagent-test-stop")
    assert containers.state("toolagent-test-stop") == ("exited", 130)
    stopped = summary_of(folder)
    assert stopped["stopped_by"] == "interrupted" and (folder / stopped["checkpoint"]).is_dir()
    limit = ("--stop-env-steps", stopped["env_steps"] + 1)
    resume = (*command[:3], "--resume", "/results/second", *limit)
    said = containers.podman("run", "--rm", *HARDENED, *options, IMAGE, *resume)
    assert f"at {stopped['env_steps']:,} env steps" in said
    assert summary_of(folder)["env_steps"] > stopped["env_steps"]


def test_the_pods_of_a_ray_job(containers):
    cluster = Cluster(containers, "rayjob.yaml", {"cpu": "3", "memory": "6Gi"})
    cluster.start_head()
    cluster.start_worker("runners")
    folder = cluster.results / "first"
    line = entrypoint(cluster.manifest, cpus=3, runners=2) + " --stop-time-s 20"
    started = time.monotonic()
    cluster.submit("toolagent-test-submit", line)
    wait_for(lambda: rows(folder))
    print(f"first row {time.monotonic() - started:.1f} s after the submission")
    assert cluster.env_runners("head") == 0 and cluster.env_runners("runners") == 2
    for probe in cluster.probes():
        assert "success" in cluster.inside(*probe)
    wait_for(lambda: containers.state("toolagent-test-submit")[0] == "exited")
    said = containers.podman("logs", "toolagent-test-submit")
    assert "waiting for nodes" in said or "results in /results/first" in said
    assert containers.state("toolagent-test-submit")[1] == 0, said
    assert summary_of(folder)["stopped_by"] == "time"
    # What a retry of the whole job would do: it ends, and leaves what is there as it is.
    cluster.submit("toolagent-test-again", line)
    wait_for(lambda: containers.state("toolagent-test-again")[0] == "exited")
    assert "is not empty" in containers.podman("logs", "toolagent-test-again")
    cluster.end()


def test_a_ray_cluster_s_head_is_lost_and_its_workers_stay(containers):
    cluster = Cluster(containers, "raycluster.yaml", {"cpu": "3", "memory": "6Gi"})
    cluster.start_redis(BASE)
    cluster.start_head()
    cluster.start_worker("runners")
    folder = cluster.results / "first"
    line = entrypoint_of_submit(cluster)
    cluster.submit("toolagent-test-first", line)
    wait_for(lambda: (folder / "checkpoints").is_dir() and rows(folder))
    wait_for(lambda: list((folder / "checkpoints").glob("checkpoint_*")))
    raylet = cluster.inside("runners", "pgrep -x raylet")
    cluster.kill_head()
    cluster.start_head()
    resumed = line.partition(" --config")[0] + " --resume /results/first --stop-time-s 30"
    before = len(rows(folder))
    cluster.submit("toolagent-test-resume", resumed)
    wait_for(lambda: len(rows(folder)) > before)
    assert cluster.inside("runners", "pgrep -x raylet") == raylet
    assert cluster.env_runners("runners") == 2
    cluster.end()


def entrypoint_of_submit(cluster):
    """What `cluster/submit.sh` has the head run, with the sizes of this machine."""
    return (
        "python /home/ray/toolagent/cluster/with_nodes.py --cpus 3 -- python -m toolagent.run "
        "--set run.checkpoint_every_s=10 --num-env-runners 2 --num-learners 1 "
        "--config expression --output-dir /results/first"
    )
