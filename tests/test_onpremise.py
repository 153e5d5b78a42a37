"""`ray up cluster/onpremise.yaml` on three hosts with SSH: `pytest -m cluster_real`, as root.

The recipe itself is used; addresses, and the GPU, are set as its header tells a user to. Where the
hosts lack a package, pip gets it from a folder, so that nothing outside is needed.
"""

from __future__ import annotations

import itertools
import time

import pytest
from machines import HOME, slowness
from onpremise_cluster import HOSTS, OnPremise
from test_run import rows_of, summary_of

pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(3000)]

FIRST_ROW_S = 90  # on a machine that does nothing else
LOST_HOST_S = 30
RECIPE = "cluster/onpremise.yaml"
SSH = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
FORGET = "rm -f .ray/auth_token ray_bootstrap_key.pem"


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

    def __init__(self, hosts, name, *arguments, results=None):
        self.hosts = hosts
        self.folder = (results or hosts.homes["head"] / "results") / name
        known = set(hosts.jobs())
        self.log = hosts.log / f"submit-{name}-{len(known)}"
        self.slowness, self.submitted = slowness(), time.monotonic()
        line = hosts.line(
            f"cluster/submit.sh --cpus 4 -- --num-env-runners 3 --num-learners 1 "
            f"--num-gpus-per-learner 0 {' '.join(map(str, arguments))}"
        )
        self.process = hosts.laptop.start(line, self.log, user="toolagent")
        self.number = hosts.wait_for(lambda: set(hosts.jobs()) - known, 60 * slowness()).pop()

    def output(self):
        return self.log.read_text()

    def rows(self):
        there = (self.folder / "progress.jsonl").is_file()
        return rows_of(self.folder) if there else []

    def until(self, condition, seconds):
        """Waits for it while the job runs; the seconds are those of an idle machine."""
        deadline = time.monotonic() + seconds * max(slowness(), self.slowness)
        while not (found := condition()):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)
        return found

    def first_row(self, known=0):
        self.until(lambda: len(self.rows()) > known, FIRST_ROW_S)
        seconds = time.monotonic() - self.submitted
        print(f"first row {seconds:.0f} s after submit.sh, {self.slowness:.1f} programs a CPU then")

    def runners(self, number=3):
        """Env runners by host, once there are so many."""
        self.until(lambda: sum(runners(self.hosts).values()) == number, 60)
        return runners(self.hosts)

    def stop(self):
        """`ray job stop`: a checkpoint is written."""
        self.hosts.run(f"ray job stop {self.number}", timeout=400)
        self.process.wait(60 * slowness())
        summary = summary_of(self.folder)
        assert summary["stopped_by"] == "interrupted"
        assert (self.folder / summary["checkpoint"]).is_dir()
        assert "Traceback" not in self.output()
        self.hosts.wait_for(lambda: not sum(runners(self.hosts).values()), 60 * slowness())


def up(hosts):
    """`ray up`, and the dashboard forwarded to the laptop, until all nodes are there."""
    before, started = slowness(), time.monotonic()
    said = hosts.run(f"ray up --yes {RECIPE}", timeout=900)
    hosts.laptop.start(
        hosts.line(f"exec ray dashboard {RECIPE}"), hosts.log / "dashboard", user="toolagent"
    )
    hosts.wait_for(lambda: hosts.alive() == len(HOSTS), 90 * slowness())
    seconds = time.monotonic() - started
    print(f"three hosts {seconds:.0f} s after `ray up`, {before:.1f} programs a CPU before")
    return said


def left(hosts, name):
    """Of Ray's processes on a host, and of its ports, but sshd's."""
    command = "ss --no-header --listening --tcp --numeric --processes"
    ports = hosts.hosts[name].run(command, "root").splitlines()
    return hosts.ray_processes(name) + [line for line in ports if "sshd" not in line]


def down(hosts):
    """`ray down`, after which nothing runs and listens on any host.

    Ray itself ends on the head only; the others end after a minute without a head.
    """
    hosts.run(f"ray down --yes {RECIPE}", timeout=900)
    started = time.monotonic()
    for name in HOSTS:
        hosts.wait_for(lambda name=name: not left(hosts, name), 90 * slowness())
    print(f"nothing runs on any host {time.monotonic() - started:.0f} s after `ray down`")


def new(name, *more):
    return ("--config", "expression", "--output-dir", f"{HOME}/results/{name}", *more)


def secret_of(hosts):
    return (hosts.homes["laptop"] / ".ray/auth_token").read_text()


def where_secrets_are(hosts, name):
    """The files of a host with the token, or with the key, and their modes."""
    found = {}
    for word in (secret_of(hosts), "BEGIN OPENSSH PRIVATE KEY"):
        out = hosts.hosts[name].run(f"grep -rlsF -- '{word}' ~ /tmp /dev/shm", check=False)
        for path in out.split():
            found[path.rpartition("/")[2]] = hosts.hosts[name].run(f"stat -c %a {path}").strip()
    return found


def test_ray_up_and_a_run_on_the_other_hosts(hosts):
    assert secret_of(hosts) not in up(hosts)
    job = Job(hosts, "first", *new("first"))
    job.first_row()
    where = job.runners()
    assert where["head"] == 0 and sorted(where.values()) == [0, 1, 2]
    job.stop()
    assert secret_of(hosts) not in job.output()


def test_resume_and_a_host_lost_and_back(hosts):
    folder = hosts.homes["head"] / "results" / "first"
    before = rows_of(folder)
    job = Job(hosts, "first", "--resume", HOME / "results" / "first")
    job.first_row(len(before) + 1)
    assert job.rows()[: len(before) - 1] == before[:-1]
    where = job.runners()
    lost = next(name for name in HOSTS if where[name] == 2)  # a learner is on the other one

    arrived = [time.monotonic()]

    def until_rows(more, seconds):
        """Notes when rows come."""
        known = len(job.rows())
        for number in range(known + 1, known + more + 1):
            job.until(lambda number=number: len(job.rows()) >= number, seconds)
            arrived.append(time.monotonic())

    until_rows(4, 30)
    usual = max(after - row for row, after in itertools.pairwise(arrived))
    hosts.network.connect(lost, False)
    arrived[:] = arrived[-1:]
    until_rows(4, 90)
    longest = max(after - row for row, after in itertools.pairwise(arrived))
    print(f"a lost host: {longest:.0f} s without a row, {usual:.0f} s before")
    assert longest - usual < LOST_HOST_S
    hosts.wait_for(lambda: hosts.alive() == len(HOSTS) - 1, 60 * slowness())

    hosts.network.connect(lost, True)
    started = time.monotonic()
    hosts.wait_for(lambda: hosts.alive() == len(HOSTS), 180 * slowness())
    job.until(lambda: runners(hosts)[lost] == 2, 60)
    print(f"env runners on it again after {time.monotonic() - started:.0f} s")
    until_rows(2, 30)
    job.stop()


def test_results_and_episodes_on_a_folder_that_all_hosts_mount(hosts):
    """As the header says of --output-dir and --record-episodes; neither is on the head's disk."""
    server, other = HOSTS[1:]
    folder = hosts.share(server)
    shared = HOME / "shared"
    arguments = ("--output-dir", shared / "run", "--record-episodes", shared / "episodes")
    job = Job(hosts, "run", "--config", "expression", *arguments, results=folder)
    job.first_row()
    job.runners()
    job.until(lambda: len(list(folder.glob("episodes/*/*.parquet"))) >= 3, 60)
    job.stop()
    hosts.hosts["head"].run(f"test $(stat -f -c %T {shared}) = fuseblk")
    # Another host than the one that wrote it goes on with it.
    read = f"~/toolagent-venv/bin/python -m toolagent.evaluate {shared}/run"
    assert summary_of(job.folder)["checkpoint"] in hosts.hosts[other].run(read, timeout=300)


def test_ray_down_leaves_nothing_and_ray_up_takes_what_is_there(hosts):
    keys = {"auth_token": "600"}
    for name in HOSTS:
        key = {"ray_bootstrap_key.pem": "600"} if name == "head" else {}
        assert where_secrets_are(hosts, name) == keys | key
    down(hosts)
    assert (hosts.homes["head"] / "results/first/summary.json").is_file()
    up(hosts)
    down(hosts)
    for name in HOSTS:  # as the header tells
        hosts.run(f"ssh -i ~/.ssh/id_ed25519 {SSH} {hosts.hosts[name].address} {FORGET}")
        assert where_secrets_are(hosts, name) == {}
