"""`cluster/slurm.sh` on a real Slurm of three nodes: `python -m pytest -m cluster_real`, as root.

The recipe itself is submitted; only sizes, and the GPU, are set as its header tells a user to.
"""

from __future__ import annotations

import re
import stat
import time

import pytest
from slurm_cluster import NODES, Slurm
from test_run import rows_of, summary_of

pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(1200)]

FIRST_ROW_S = 90
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    for each in (folder, *folder.parents[:2]):  # the cluster's user reads what is mounted from it
        each.chmod(each.stat().st_mode | 0o755)
    cluster = Slurm(folder)
    yield cluster
    cluster.end()


@pytest.fixture(autouse=True)
def nothing_is_left(slurm):
    """After each test: no process of the user, no port, no token, no temporary folder."""
    yield
    slurm.wait_for(lambda: slurm.left() == [], 60)


class Job:
    """A job of the recipe, and its run's folder."""

    def __init__(self, slurm, name, *arguments, script="cluster/slurm.sh"):
        self.slurm = slurm
        self.folder = slurm.home / "runs" / name
        self.submitted = time.monotonic()
        self.number = slurm.submit(*map(str, arguments), script=script)

    def output(self):
        file = self.slurm.checkout / f"toolagent-{self.number}.out"
        return file.read_text() if file.exists() else ""

    def rows(self):
        there = (self.folder / "progress.jsonl").is_file()
        return rows_of(self.folder) if there else []

    def state(self):
        return self.slurm.state(self.number)

    def until(self, condition, seconds):
        """Waits for it while the job runs."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.state() not in ENDED, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)
        return found

    def first_row(self):
        self.until(self.rows, FIRST_ROW_S)
        return time.monotonic() - self.submitted

    def end(self, seconds=180):
        state = self.slurm.wait_for(lambda: self.state() in ENDED and self.state(), seconds)
        self.slurm.wait_for(
            lambda: self.number not in self.slurm.login.run("squeue --noheader"), 60
        )
        return state


def new(name, *more):
    return ("--config", "expression", "--output-dir", f"$HOME/runs/{name}", *more)


def runners(slurm):
    """Env runners by node."""
    return {
        name: sum("ray::BatchedEnvRunner" in line for line in machine.command_lines())
        for name, machine in slurm.nodes.items()
    }


def test_a_job_runs_to_its_end(slurm):
    job = Job(slurm, "first", *new("first", "--stop-time-s", 25))
    first_row = job.first_row()
    # One env runner a CPU of the second part, but one: there the learner is, without a GPU.
    where = job.until(lambda: sum(runners(slurm).values()) == 3 and runners(slurm), 60)
    head = next(name for name in NODES if not where[name])
    assert sorted(where.values()) == [0, 1, 2]
    assert f"{job.number}+0" in slurm.login.run("squeue --me") and slurm.states()[head] != "idle"
    [token] = slurm.checkout.glob(f".toolagent-{job.number}.*/auth_token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    secret = token.read_text()
    listening = slurm.nodes[head].run("ss --no-header --listening --tcp --numeric", "root")
    dashboard = re.search(r"http://127\.0\.0\.1:(\d+)", job.output()).group(1)
    assert re.search(rf"127\.0\.0\.1:{dashboard}\b", listening), listening
    assert job.end() == "COMPLETED", job.output()
    assert summary_of(job.folder)["stopped_by"] == "time"
    assert secret not in job.output() and "Traceback" not in job.output()
    print(f"first row {first_row:.1f} s after sbatch")
    assert first_row < FIRST_ROW_S


def test_a_signal_writes_a_checkpoint_and_resume_goes_on(slurm):
    job = Job(slurm, "stopped", *new("stopped"))
    job.until(lambda: len(job.rows()) >= 2, FIRST_ROW_S + 60)
    slurm.login.run(f"scancel --batch --signal=TERM {job.number}")
    assert job.end() == "FAILED"  # of exit code 130, as after a signal everywhere
    before = job.rows()
    summary = summary_of(job.folder)
    assert summary["stopped_by"] == "interrupted" and (job.folder / summary["checkpoint"]).is_dir()

    again = Job(slurm, "stopped", "--resume", "$HOME/runs/stopped")
    again.until(lambda: len(again.rows()) >= len(before) + 2, FIRST_ROW_S + 60)
    slurm.login.run(f"scancel --batch --signal=TERM {again.number}")
    again.end()
    rows = again.rows()
    # The last iteration was cut short: it is finished, and its row replaced.
    assert rows[: len(before) - 1] == before[:-1]
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))


def test_two_jobs_at_once_on_the_same_nodes(slurm):
    jobs = [Job(slurm, name, *new(name, "--stop-time-s", 40)) for name in ("one", "other")]
    for job in jobs:
        job.first_row()
    shared = slurm.login.run("squeue --noheader --states=RUNNING --format=%N").split()
    assert len(shared) == 4 and len(set(shared)) < 4, shared
    for job in jobs:
        assert job.end() == "COMPLETED", job.output()
        assert summary_of(job.folder)["stopped_by"] == "time"
