"""`cluster/slurm.sh` on a real Slurm of three nodes: `python -m pytest -m cluster_real`, as root.

The recipe itself is submitted; only sizes, and the GPU, are set as its header tells a user to.
"""

from __future__ import annotations

import re
import shutil
import stat
import time

import pytest
from machines import needs_machines, slowness
from slurm_cluster import NODES, Slurm
from test_run import rows_of, summary_of

pytestmark = [pytest.mark.cluster_real, pytest.mark.timeout(2400), needs_machines]

FIRST_ROW_S = 90  # on a machine that does nothing else
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, request):
    installs = "cluster_real" in request.config.option.markexpr
    if not installs and not (shutil.which("slurmctld") and shutil.which("munged")):
        pytest.skip("needs Debian's slurm-wlm and munge, which `-m cluster_real` installs")
    folder = tmp_path_factory.mktemp("slurm")
    for each in (folder, *folder.parents[:2]):  # the cluster's user reads what is mounted from it
        each.chmod(each.stat().st_mode | 0o755)
    cluster = Slurm(folder)
    yield cluster
    cluster.end()


@pytest.fixture(autouse=True)
def nothing_is_left(slurm):
    """After each test: no process of the user, so no port; no token, no temporary folder."""
    yield
    if slurm.login.run("squeue --noheader"):  # of a test that has failed
        slurm.login.run("scancel --user=toolagent", "root")
    slurm.wait_for(lambda: slurm.left() == [], 60 * slowness())


class Job:
    """A job of the recipe, and its run's folder."""

    def __init__(self, slurm, name, *arguments, script="cluster/slurm.sh"):
        self.slurm = slurm
        self.folder = slurm.home / "runs" / name
        self.slowness, self.submitted = slowness(), time.monotonic()
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
        """Waits for it while the job runs; the seconds are those of an idle machine."""
        deadline = time.monotonic() + seconds * max(slowness(), self.slowness)
        while not (found := condition()):
            assert self.state() not in ENDED, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)
        return found

    def first_row(self):
        self.until(self.rows, FIRST_ROW_S)
        seconds = time.monotonic() - self.submitted
        print(f"first row {seconds:.0f} s after sbatch, {self.slowness:.1f} programs a CPU before")

    def end(self, seconds=60):
        """Waits until Slurm has nothing of it any more; its state."""
        seconds *= slowness()
        self.slurm.wait_for(lambda: self.state() in ENDED, seconds)
        self.slurm.wait_for(lambda: not self.slurm.login.run("squeue --noheader"), seconds)
        return self.state()

    def extended(self, before):
        """Waits until a resumed run has two rows more than those, which it has kept."""
        self.until(lambda: len(self.rows()) >= len(before) + 2, FIRST_ROW_S)
        rows = self.rows()
        # The last iteration was cut short: it is finished, and its row replaced.
        assert rows[: len(before) - 1] == before[:-1]
        assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))

    def has_stopped_with_a_checkpoint(self):
        assert self.end() == "FAILED", self.output()  # of exit code 130, as everywhere
        summary = summary_of(self.folder)
        assert summary["stopped_by"] == "interrupted"
        assert (self.folder / summary["checkpoint"]).is_dir()


def new(name, *more):
    return ("--config", "expression", "--output-dir", f"$HOME/runs/{name}", *more)


def runners(slurm):
    """Env runners by node."""
    return {
        name: sum("ray::BatchedEnvRunner" in line for line in machine.command_lines())
        for name, machine in slurm.nodes.items()
    }


@pytest.mark.full  # too: the one that CI has time for
def test_a_job_runs_to_its_end(slurm):
    job = Job(slurm, "first", *new("first", "--stop-time-s", 15))
    job.first_row()
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


def test_time_limit_and_signal_write_a_checkpoint_and_resume_goes_on(slurm):
    job = Job(slurm, "stopped", *new("stopped"))
    job.until(lambda: len(job.rows()) >= 2, FIRST_ROW_S)
    # Slurm signals 5 to 6 minutes before the limit, as the recipe asks, and counts whole minutes.
    minutes = int(time.monotonic() - job.submitted) // 60 + 6
    slurm.login.run(f"scontrol update JobId={job.number} TimeLimit={minutes}", "root")
    slurm.wait_for(lambda: job.state() in ENDED, 120 + 60 * slowness())
    job.has_stopped_with_a_checkpoint()

    again = Job(slurm, "stopped", "--resume", "$HOME/runs/stopped")
    again.extended(job.rows())
    slurm.login.run(f"scancel --batch --signal=TERM {again.number}")
    again.has_stopped_with_a_checkpoint()


@pytest.mark.parametrize("lost", ["first", "other"])
def test_a_node_set_down_ends_the_job(slurm, lost):
    name = f"lost-{lost}"
    job = Job(slurm, name, *new(name))
    job.until(lambda: sum(runners(slurm).values()) == 3 and job.rows(), FIRST_ROW_S)
    where = runners(slurm)
    node = next(node for node in NODES if bool(where[node]) == (lost == "other"))
    slurm.login.run(f"scontrol update NodeName={node} State=DOWN Reason=test", "root")
    try:
        assert job.end() == "NODE_FAIL", job.output()
        slurm.wait_for(lambda: slurm.left() == [], 60 * slowness())
    finally:
        slurm.wait_for(lambda: slurm.states()[node] == "idle" or slurm.resume(node), 60)
    assert (job.folder / "config.yaml").is_file() and not (job.folder / "summary.json").exists()


def test_two_jobs_at_once_on_the_same_nodes(slurm):
    jobs = [Job(slurm, name, *new(name)) for name in ("one", "other")]
    for job in jobs:
        job.first_row()
    parts = slurm.login.run("squeue --noheader --states=RUNNING --format=%N").split()
    assert len(parts) == 4
    used = slurm.login.run(f"scontrol show hostnames {','.join(parts)}").split()
    assert sorted(used) == sorted(2 * NODES)  # two parts on each node, of both jobs
    # The end of one, at once, is nothing to the other.
    slurm.login.run(f"scancel {jobs[0].number}")
    slurm.wait_for(lambda: jobs[0].state() == "CANCELLED", 60)
    gone = f"toolagent-{jobs[0].number}."
    slurm.wait_for(lambda: not any(gone in line for line in slurm.left()), 60 * slowness())
    rows = len(jobs[1].rows())
    jobs[1].until(lambda: len(jobs[1].rows()) >= rows + 2, FIRST_ROW_S)
    slurm.login.run(f"scancel --batch --signal=TERM {jobs[1].number}")
    jobs[1].has_stopped_with_a_checkpoint()
