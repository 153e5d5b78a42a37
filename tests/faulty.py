"""Faults from outside: env runners that can be told to fail, and a ledger of every fragment.

`python tests/faulty_run.py` is `python -m toolagent.run` with both; this module has to be
importable for Ray's workers too. The variable FAULTS names the folder through which a test tells
them what to do, and where the ledgers lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.rollouts.env_runner import BatchedEnvRunner
from toolagent.run.faults import FAULTS

ROOT = Path(__file__).parent.parent


def folder():
    return Path(os.environ["FAULTS"])


def told(what):
    """True once for each time that a test has asked for this fault."""
    try:
        (folder() / what).unlink()
    except FileNotFoundError:
        return False
    return True


def note(file, **line):
    """One write a line, so that lines of several processes don't mix."""
    with open(folder() / file, "a") as ledger:
        ledger.write(json.dumps(line) + "\n")


def identity(batch):
    """The same for the same episodes, and for no others."""
    digest = hashlib.blake2b(digest_size=16)
    for _, column in batch.columns():
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


class FaultyEnvRunner(BatchedEnvRunner):
    """Notes what it played; raises, or plays what is no number, when it is told to."""

    def sample_fragment(self, state=None, num_episodes=None, request=0):
        name = f"runner-{self.worker_index}"
        if told(f"{name}-raise"):
            raise RuntimeError("as it was told")
        fragment = super().sample_fragment(state, num_episodes, request)
        if told(f"{name}-nan"):
            fragment.batch.rewards[0, 0] = np.nan
        note(
            "played.jsonl",
            pid=os.getpid(),
            env_runner=self.worker_index,
            identity=identity(fragment.batch),
            env_steps=fragment.batch.env_steps,
            stage=int(self.env.stage),
            time=time.monotonic(),
        )
        return fragment


class FaultyLearner(EpisodeColumnsLearner):
    """Gradients that are no numbers, and no answer for a checkpoint or when it is restored from
    one, when it is told to."""

    def get_state(self, components=None, **kwargs):
        if components is None and told("checkpoint-hangs"):  # else only its weights are wanted
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().get_state(components, **kwargs)

    def set_state(self, state):
        if told("restore-hangs"):
            os.kill(os.getpid(), signal.SIGSTOP)
        super().set_state(state)

    def compute_gradients(self, loss_per_module, **kwargs):
        gradients = super().compute_gradients(loss_per_module, **kwargs)
        if told("gradient-nan"):
            next(iter(gradients.values())).view(-1)[0] = torch.nan
        return gradients


class HopelessLearner(EpisodeColumnsLearner):
    """All its gradients are infinite, from when it is told."""

    def compute_gradients(self, loss_per_module, **kwargs):
        gradients = super().compute_gradients(loss_per_module, **kwargs)
        if (folder() / "hopeless").exists():
            for gradient in gradients.values():
                gradient.fill_(torch.inf)
        return gradients


# What a test reads -----------------------------------------------------------------------------


def lines_of(path):
    """The whole lines of a ledger; a killed process may have torn its last one."""
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def history(faults):
    """What became of each fragment, in the course that the run took in the end.

    Where it went back to a checkpoint, by itself or with --resume, an update begins again: what
    was noted for it and for later ones before is void.
    """
    course, update = [], [0, 0]
    for line in lines_of(faults / "fates.jsonl"):
        if "begins" in line:
            update = line["begins"]  # the iteration, and the number of its updates before
            while course and course[-1]["update"] >= update:
                course.pop()
        else:
            course.append(line | {"update": update})
    return course


def check_ledger(faults, env_steps):
    """No episode was lost or doubled: what the run counts are exactly the env steps of the distinct
    fragments that it learned from or dropped, all of which were played."""
    played = {line["identity"]: line for line in lines_of(faults / "played.jsonl")}
    course = history(faults)
    counted = [entry for entry in course if entry["fate"] != "rejected"]
    identities = [entry["identity"] for entry in counted]
    assert len(set(identities)) == len(identities), "a fragment was counted twice"
    for entry in counted:
        assert entry["env_steps"] == played[entry["identity"]]["env_steps"]
    assert sum(entry["env_steps"] for entry in counted) == env_steps


@contextlib.contextmanager
def cluster_of_raylets(monkeypatch, faults, head_cpus):
    """A cluster of several raylets on this machine, whose workers can be told to fail."""
    import ray
    from ray.cluster_utils import Cluster

    faults.mkdir()
    monkeypatch.setenv("FAULTS", str(faults))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on loopback only
    health = {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 5}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": head_cpus,
            "include_dashboard": False,
            "_system_config": {f"health_check_{name}": value for name, value in health.items()},
        },
    )
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class FaultyRun:
    """The command with faulty parts, in a process of its own, and what a test does to it."""

    def __init__(self, cwd, *arguments, env_runners=2, extra=()):
        self.cwd, self.faults, self.folder = Path(cwd), Path(cwd) / "faults", Path(cwd) / "run"
        self.faults.mkdir(exist_ok=True)
        self.options = [
            *("--num-env-runners", env_runners, "--set", "run.dashboard=false"),
            *("--set", "run.sample_trajectories=0"),
            *("--set", "env_runners.env_runner_cls=faulty:FaultyEnvRunner"),
            *("--set", "training.updates_per_iteration=5"),
            *arguments,
        ]
        self.path = [str(path) for path in (ROOT, ROOT / "tests", *extra)]
        self.output = ""
        self.process = self._start("--output-dir", self.folder, *self.options)

    def _start(self, *arguments):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(self.path),
            "FAULTS": str(self.faults),
            "COLUMNS": "80",
        }
        environment.pop("RAY_ADDRESS", None)
        self._log = open(self.cwd / "output.txt", "a+")  # noqa: SIM115 (as long as the process)
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faulty_run.py"), *map(str, arguments)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.cwd,
            env=environment,
            start_new_session=True,
        )

    def resume(self, *arguments):
        """Starts the next session; the one before has ended."""
        self.process = self._start("--resume", self.folder, *arguments)

    def rows(self):
        return lines_of(self.folder / "progress.jsonl")

    def played(self):
        return lines_of(self.faults / "played.jsonl")

    def tell(self, what):
        (self.faults / what).touch()

    def until_told(self, what):
        """Waits for a word of the run's own, and takes it away."""
        self.until((self.faults / what).exists)
        (self.faults / what).unlink()

    def actors(self, name):
        """Pids of the live Ray actors of this run whose class has that name in its own."""
        found = []
        for child in psutil.Process().children(recursive=True):  # a cluster is the test's own
            with contextlib.suppress(psutil.Error):
                title = " ".join(child.cmdline())
                if title.startswith("ray::") and name in title:
                    found.append(child.pid)
        return found

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def gone(self, processes, timeout=120):
        """None of them is left."""
        _, alive = psutil.wait_procs(processes, timeout)
        left = []
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):  # just now
                if process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process.cmdline())
        assert not left

    def until(self, true, timeout=200):
        """Waits until the condition holds; fails at once if the run ends before."""
        deadline = time.monotonic() + timeout
        while not true():
            assert self.process.poll() is None, f"the run has ended\n{self.said()}"
            assert time.monotonic() < deadline, f"waited in vain\n{self.said()}"
            time.sleep(0.1)

    def count(self, field):
        rows = self.rows()
        return rows[-1][field] or 0 if rows else 0

    def until_counted(self, field, number, timeout=200):
        self.until(lambda: self.count(field) >= number, timeout)

    def until_trained(self, more_iterations=2, timeout=200):
        """Waits for further iterations."""
        goal = (self.rows()[-1]["iteration"] if self.rows() else 0) + more_iterations
        self.until(lambda: self.rows() and self.rows()[-1]["iteration"] >= goal, timeout)

    def said(self):
        return (self.cwd / "output.txt").read_text()

    def end(self, timeout=250):
        """Waits for the end; returns the exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            self.close()

    def kill(self):
        """SIGKILL to the driver; Ray's own processes notice."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """Leaves nothing behind, whatever happened."""
        children = []
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
        self._log.close()

    @property
    def summary_file(self):
        return self.folder / "summary.json"

    def summary(self):
        return json.loads(self.summary_file.read_text())

    def check_quiet(self, *also):
        """No traceback, and nothing of RLlib's own: what happened is said in our words."""
        said = self.said()
        for noise in ("Traceback", "actor_manager", "NoneType", *also):
            assert noise not in said, said

    def check_course(self):
        """Counters never go down, and the ledger is that of the summary."""
        rows, summary = self.rows(), self.summary()
        for before, after in itertools.pairwise(rows):
            assert after["iteration"] == before["iteration"] + 1
            for name in ("env_steps", "time_s"):
                assert after[name] >= before[name]
            for name in FAULTS:
                assert after[name] >= before[name]
        assert rows[-1]["env_steps"] == summary["env_steps"]
        check_ledger(self.faults, summary["env_steps"])

    def check_certified(self):
        """All problems of all stages of the calculator are solved."""
        stages = self.summary()["stages"]
        assert [stage["solved"] for stage in stages] == [1_000, 10_000, 100_000]
