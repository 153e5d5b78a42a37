"""Runs on an existing cluster: real raylets on this machine that have no toolagent installed."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from processes import ROOT, kill, output_of, start
from ray_clusters import TOKEN, RayCluster, cluster_environment, is_runner
from test_run import rows_of, summary_of

from toolagent import cli
from toolagent.cluster import address as cluster_address
from toolagent.errors import UserError
from toolagent.run import __main__ as run_command

QUICK = ("--set", "run.sample_trajectories=1")
LATE_LAST_STAGE = (
    "[{stage: 0, advance_after_iterations: 40}, "
    "{stage: 1, advance_after_iterations: 20}, {stage: 2}]"
)
ALONE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote
def look():
    try:
        import toolagent.rollouts.env_runner
    except ModuleNotFoundError:
        return "no toolagent"

print(ray.get(look.remote()))
"""


@pytest.fixture
def environment(tmp_path):
    with cluster_environment(tmp_path) as variables:
        yield variables


@pytest.fixture
def ray_cluster(environment):
    """Starts clusters, and ends them."""
    started = []

    def start(nodes, **head):
        started.append(RayCluster(environment, nodes, **head))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


def runners(cluster):
    """Env runners by the name of their node, read off the machine's processes, not from Ray.

    A node's actors are children of its raylet, whose command line names the node.
    """
    names = {node_id: name for name, node_id in cluster.node_ids.items()}
    found = {name: 0 for name in names.values()}
    for raylet in psutil.Process(cluster.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = raylet.cmdline()
            node = next((a.partition("=")[2] for a in line if a.startswith("--node_id=")), None)
            if node in names and os.path.basename(line[0]) == "raylet":
                found[names[node]] = sum(map(is_runner, raylet.children()))
    return found


def start_run(cluster, *arguments, cwd):
    """`python -m toolagent.run --address ...`; the driver alone has toolagent."""
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    arguments = ("--address", cluster.address, *arguments)
    return start("toolagent.run", *arguments, cwd=cwd, env=environment)


def wait_for(condition, seconds, process):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return time.monotonic()
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s; {output_of(process, 5)}")


def has_rows(folder, count=1):
    return (folder / "progress.jsonl").is_file() and len(rows_of(folder)) >= count


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_run_on_three_raylets_that_have_no_toolagent(ray_cluster, environment, tmp_path):
    """Code travels; runners are on both nodes; one node is killed, another added; all certified."""
    cluster = ray_cluster({"first": {"num_cpus": 8}, "second": {"num_cpus": 8}})
    # The oracle: a worker of this cluster can't import toolagent by itself.
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, cluster.address],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert alone.stdout.strip() == "no toolagent", alone.stderr
    folder = tmp_path / "run"
    started = time.monotonic()
    # It ends by itself when all is solved. The last stage begins after so many iterations that by
    # then its cluster has lost a node and got another.
    process = start_run(
        cluster,
        *("--num-env-runners", 4, "--output-dir", folder, *QUICK),
        *("--set", f"curriculum.levels={LATE_LAST_STAGE}"),
        cwd=tmp_path,
    )
    try:
        first_row = wait_for(lambda: has_rows(folder), 150, process) - started
        # 4 runners would all fit on half of a node: Ray's default packs them there.
        wait_for(lambda: sum(runners(cluster).values()) == 4, 200, process)
        assert runners(cluster) == {"head": 0, "first": 2, "second": 2}

        before = rows_of(folder)[-1]
        cluster.order(remove="first")
        cluster.order(add="third", **{"with": {"num_cpus": 8}})
        wait_for(lambda: sum(runners(cluster).values()) == 4, 200, process)
        assert runners(cluster)["second"] >= 2
        after = rows_of(folder)[-1]
        assert after["next_stage"] < 2  # so the end came after all that
        out, err = output_of(process, 240)
    finally:
        kill(process)
    assert (process.returncode, err) == (0, ""), err
    assert "warning" not in out.lower()
    summary, rows = summary_of(folder), rows_of(folder)
    assert summary["stopped_by"] == "solved"
    assert [stage["solved"] for stage in summary["stages"]] == [1_000, 10_000, 100_000]
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    longest = max(b["time_s"] - a["time_s"] for a, b in itertools.pairwise(rows))
    print(
        f"first row {first_row:.1f} s after the start; node killed at {before['time_s']:.1f} s, "
        f"its runners back by {after['time_s']:.1f} s; longest time without progress "
        f"{longest:.1f} s; solved after {summary['wall_time_s']:.1f} s"
    )
    assert first_row < 60 and longest < 15


# Wrong input -----------------------------------------------------------------------------


def refusal(capfd, *arguments):
    started = time.monotonic()
    code = cli.main(run_command.command, list(map(str, arguments)))
    captured = capfd.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert time.monotonic() - started < 60
    return captured.err


@pytest.fixture
def nothing_started(tmp_path, monkeypatch):
    """Runs in an empty folder that has to stay empty, and no Ray may be started."""
    import ray.rllib  # a process that has it checks before it starts Ray

    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(ray, "init", pytest.fail)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    yield
    assert list(cwd.iterdir()) == []


@pytest.mark.full
def test_addresses_where_there_is_no_cluster(nothing_started, monkeypatch, capfd):
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
    )
    with socket.socket() as silent, socket.socket() as closed:
        for each in (silent, closed):
            each.bind(("127.0.0.1", 0))
        silent.listen(5)
        port = web.stdout.readline().split("port ")[1].split()[0]
        try:
            for address, message in (
                (f"127.0.0.1:{port}", "no Ray cluster answers there (something else does)"),
                (f"127.0.0.1:{silent.getsockname()[1]}", "(no answer within 1 s)"),
                (f"127.0.0.1:{closed.getsockname()[1]}", "(connection refused)"),
                ("no-such-host.invalid:6379", "(no such host)"),
            ):
                within = 1.0 if "no answer" in message else 30.0
                monkeypatch.setattr(cluster_address, "ANSWERS_WITHIN_S", within)
                line = refusal(capfd, "--address", address)
                assert f"--address {address}: " in line and message in line, line
        finally:
            web.kill()
            web.wait()


@pytest.mark.full
def test_tokens_and_resources_that_the_cluster_does_not_take(ray_cluster, tmp_path):
    cluster = ray_cluster({"only": {"num_cpus": 2, "resources": {"play": 1}}})
    wrong, empty = tmp_path / "wrong", tmp_path / "empty"
    wrong.write_text("f" * 64)
    empty.mkdir()
    play = ("--set", "env_runners.custom_resources_per_env_runner={play: 1}")
    cases = [
        ({"RAY_AUTH_MODE": ""}, (), "the cluster asks for a token; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, (), f"the cluster refuses the token in {wrong}"),
        (  # what else it can lack: `test_placement`
            {},
            ("--num-env-runners", "2", *play),
            "asks for 2 of 'play' in all, the nodes have 1 free; they declare play",
        ),
    ]

    def run(case):
        changed, arguments, _ = case
        environment = {**cluster.environment, "PYTHONPATH": str(ROOT), **changed}
        return subprocess.run(
            [
                *(sys.executable, "-m", "toolagent.run"),
                *("--address", cluster.address, "--output-dir", "run", *arguments),
            ],
            env={key: value for key, value in environment.items() if value},
            cwd=empty,
            capture_output=True,
            text=True,
            timeout=400,
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        ended = list(pool.map(run, cases))
    for done, (_, _, message) in zip(ended, cases, strict=True):
        err = done.stderr
        assert (done.returncode, done.stdout) == (2, ""), err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert message in err and TOKEN not in err and "f" * 64 not in err
    assert list(empty.iterdir()) == []


def test_this_machine_has_no_custom_resources(nothing_started, capfd):
    line = refusal(capfd, "--set", "learners.custom_resources_per_learner={fast: 1}")
    assert "learners.custom_resources_per_learner: asks for 1 of 'fast'" in line


def test_a_machine_that_is_no_node_of_the_cluster(monkeypatch):
    from ray._private import services
    from ray.core.generated import gcs_service_pb2

    reply = gcs_service_pb2.GetAllNodeInfoReply()
    reply.node_info_list.add(node_id=b"1" * 28)
    monkeypatch.setattr(services, "find_node_ids", lambda: {"ab"})
    with pytest.raises(UserError, match="this machine is none of that cluster's 1 nodes"):
        cluster_address._check_nodes("10.0.0.1:6379", reply)
