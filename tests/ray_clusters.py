"""Ray clusters of several raylets on this machine, each with a token and a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

import psutil
from processes import ROOT, free_port, kill

TOKEN = "0123456789abcdef" * 4
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@contextlib.contextmanager
def cluster_environment(tmp_path):
    """Of every process of a cluster: no toolagent, a token of its own, a folder of its own."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    folder = tempfile.mkdtemp(prefix="ta-", dir="/tmp")  # Ray's sockets need short paths
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))}
    hidden = tmp_path / "hidden"  # where `pip install -e` has put toolagent on the path
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        f"import sys\nsys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]\n"
    )
    yield kept | {
        "PYTHONPATH": str(hidden),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_TMPDIR": folder,
    }
    shutil.rmtree(folder, ignore_errors=True)


CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
spec = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args=dict(spec["head"]))
nodes = {"head": cluster.head_node}
for name, arguments in spec["nodes"].items():
    nodes[name] = cluster.add_node(wait=False, **arguments)
cluster.wait_for_nodes()
told = lambda: print(json.dumps({"address": cluster.address,
                     "dashboard": cluster.head_node.address_info["webui_url"],
                     "node_ids": {name: node.node_id for name, node in nodes.items()}}), flush=True)
told()
for line in sys.stdin:
    order = json.loads(line)
    if "remove" in order:
        cluster.remove_node(nodes.pop(order["remove"]), allow_graceful=False)
    if "add" in order:
        nodes[order["add"]] = cluster.add_node(**order["with"])
    told()
cluster.shutdown()
"""


class RayCluster:
    """A cluster of several raylets, started by a process that knows nothing of toolagent."""

    def __init__(self, environment, nodes, health_checks=HEALTH_CHECKS, **head):
        head = {"num_cpus": 0, "include_dashboard": False} | head
        head["_system_config"] = health_checks
        # Without its fixed port, which another cluster on this machine may have, it takes no jobs.
        head["dashboard_agent_listen_port"] = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, json.dumps({"head": head, "nodes": nodes})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        self.environment = environment
        self._read()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith('{"address"'):
                told = json.loads(line)
                self.address, self.node_ids = told["address"], told["node_ids"]
                self.dashboard = f"http://{told['dashboard']}"
                return
        raise AssertionError("the cluster did not come up")

    def order(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        self._read()

    def stop(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        kill(self.process)


def is_runner(process):
    """Whether it is an env runner; one that has just ended has no command line, or no more."""
    try:
        return "".join(process.cmdline()[:1]).startswith("ray::BatchedEnvRunner")
    except psutil.Error:
        return False
