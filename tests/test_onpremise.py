"""`ray up cluster/onpremise.yaml` on three hosts with SSH: `pytest -m cluster_real`, as root.

The recipe itself is used; addresses, and the GPU, are set as its header tells a user to. Where the
hosts lack a package, pip gets it from a folder, so that nothing outside is needed.
"""

from __future__ import annotations

import stat
import time

import pytest
from machines import HOME
from onpremise_cluster import HOSTS, OnPremise
from test_run import rows_of

pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(1200)]

FIRST_ROW_S = 90
RECIPE = "cluster/onpremise.yaml"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onpremise")
    for each in (folder, *folder.parents[:2]):  # the hosts' user reads what is mounted from it
        each.chmod(each.stat().st_mode | 0o755)
    cluster = OnPremise(folder)
    cluster.run("ray get-auth-token --generate >/dev/null && chmod 600 ~/.ray/auth_token")
    yield cluster
    cluster.end()


def runners(hosts):
    """Env runners by host."""
    return {
        name: sum("ray::BatchedEnvRunner" in line for line in machine.command_lines())
        for name, machine in hosts.hosts.items()
    }


class Job:
    """A run that `cluster/submit.sh` submits, with 3 env runners and a CPU learner."""

    def __init__(self, hosts, name, *arguments):
        self.hosts = hosts
        self.folder = hosts.homes["head"] / "results" / name
        known = set(hosts.jobs())
        self.log = hosts.log / f"submit-{name}-{len(known)}"
        self.submitted = time.monotonic()
        line = hosts.line(
            f"cluster/submit.sh --cpus 4 -- --num-env-runners 3 --num-learners 1 "
            f"--num-gpus-per-learner 0 {' '.join(map(str, arguments))}"
        )
        self.process = hosts.laptop.start(line, self.log, user="toolagent")
        self.number = hosts.wait_for(lambda: set(hosts.jobs()) - known, 60).pop()

    def output(self):
        return self.log.read_text()

    def rows(self):
        there = (self.folder / "progress.jsonl").is_file()
        return rows_of(self.folder) if there else []

    def until(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)
        return found


def up(hosts):
    """`ray up`, and the dashboard forwarded to the laptop, until all nodes are there."""
    started = time.monotonic()
    said = hosts.run(f"ray up --yes {RECIPE}", timeout=500)
    hosts.laptop.start(
        hosts.line(f"ray dashboard {RECIPE}"), hosts.log / "dashboard", user="toolagent"
    )
    hosts.wait_for(lambda: hosts.alive() == len(HOSTS), 240)
    return said, time.monotonic() - started


def new(name, *more):
    return ("--config", "expression", "--output-dir", f"{HOME}/results/{name}", *more)


def test_ray_up_and_a_run_on_the_other_hosts(hosts):
    said, seconds = up(hosts)
    print(f"three hosts {seconds:.1f} s after `ray up`")
    secret = (hosts.homes["laptop"] / ".ray/auth_token").read_text()
    assert secret not in said
    for name in HOSTS:
        token = hosts.homes[name] / ".ray" / "auth_token"
        assert token.read_text() == secret and stat.S_IMODE(token.stat().st_mode) == 0o600
    key = hosts.homes["head"] / "ray_bootstrap_key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600

    job = Job(hosts, "first", *new("first"))
    job.until(job.rows, 240)
    first_row = time.monotonic() - job.submitted
    where = job.until(lambda: sum(runners(hosts).values()) == 3 and runners(hosts), 60)
    assert where["head"] == 0 and sorted(where.values()) == [0, 1, 2]

    print(f"first row {first_row:.1f} s after submit.sh")
    assert "Traceback" not in job.output() and secret not in job.output()
    assert first_row < FIRST_ROW_S
