"""Chaos: everything that can fail fails, at random, and the run ends certified all the same.

`CHAOS_SEED=17 python -m pytest -m chaos tests/test_chaos.py` repeats a seed's choice of faults; the
moments they hit differ. `CHAOS_MINUTES` sets how long they go on.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest
from faulty import FaultyRun, cluster_of_raylets

SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
MINUTES = float(os.environ.get("CHAOS_MINUTES", 10))
LEARNING = (
    *("--num-learners", 1, "--set", "learners.learner_class=faulty:FaultyLearner"),
    *("--set", "run.stop_when_solved=false", "--set", "run.max_learner_restarts=1000"),
    *("--set", "env_runners.sample_timeout_s=4.0", "--set", "run.checkpoint_every_s=3.0"),
    *("--set", "run.stop_time_s=null", "--set", "run.keep_checkpoints=4"),
)


class Chaos:
    """Does what may happen to a cluster to a run.

    Args:
        run: under way.
        cluster: whose nodes come and go; None: there are none to lose.
        seed: of the choices.
    """

    def __init__(self, run, cluster=None, seed=SEED):
        self.run, self.cluster, self.rng = run, cluster, random.Random(seed)
        self.nodes, self.done, self.torn = [], [], []

    def kill_runner(self):
        return self._to_one("FaultyEnvRunner", signal.SIGKILL)

    def stop_runner(self):
        return self._to_one("FaultyEnvRunner", signal.SIGSTOP)

    def raise_in_runner(self):
        self.run.tell(f"runner-{self.rng.choice((1, 2))}-raise")

    def lie_in_runner(self):
        self.run.tell(f"runner-{self.rng.choice((1, 2))}-nan")

    def spoil_gradient(self):
        self.run.tell("gradient-nan")

    def kill_learner(self):
        return self._to_one("_WrappedExecutable", signal.SIGKILL)  # RLlib's name for it

    def kill_driver(self):
        self.run.kill()
        self._resume()

    def tear_checkpoint_and_kill_driver(self, *resumed_with):
        folder = self.run.folder / "checkpoints"
        self.run.until(lambda: len(list(folder.glob("checkpoint_*"))) > 1)  # an older one is left
        self.run.kill()
        newest = max(folder.glob("checkpoint_*"))
        victim = self.rng.choice(sorted(newest.iterdir()))
        with victim.open("r+b") as file:
            file.truncate(victim.stat().st_size // 2)
        said = self.run.said().count(f"passed over {newest.name}")
        self._resume(*resumed_with)
        self.run.until(lambda: self.run.said().count(f"passed over {newest.name}") > said)
        self.torn.append(f"{newest.name}/{victim.name}")

    def lose_node(self):
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        if not self.nodes:  # there is no place to play for a while
            time.sleep(3)
            self.add_node()

    def add_node(self):
        if len(self.nodes) == 2:
            return False
        self.nodes.append(self.cluster.add_node(num_cpus=1, resources={"runners": 2}))
        return True

    def _to_one(self, name, number):
        actors = self.run.actors(name)
        if not actors:  # all of them are being replaced
            return False
        os.kill(self.rng.choice(actors), number)
        return True

    def _resume(self, *arguments):
        time.sleep(1)
        self.run.resume(*self.address, *arguments)

    @property
    def address(self):
        return ("--address", self.cluster.address) if self.cluster else ()

    def goes_on(self, timeout=240):
        """Waits until iterations are made; a run that ended by itself is a fault of its own."""
        self.run.until_trained(2, timeout)

    def rage(self, faults, seconds, at_least):
        """Faults at random until the time is up and there were enough; learns in between."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or len(self.done) < at_least:
            fault = self.rng.choice(faults)
            if getattr(self, fault)() is False:  # there was nothing to do it to
                continue
            self.done.append(fault)
            print(f"{len(self.done)}: {fault}", flush=True)
            if self.rng.random() < 0.3:  # some come together
                continue
            self.goes_on()
            time.sleep(self.rng.random() * 3)

    def finish(self):
        """Kills the driver once more, and lets the run end by itself, certified."""
        self.goes_on()
        self.tear_checkpoint_and_kill_driver("--set", "run.stop_when_solved=true")
        assert self.run.end(240) == 0, self.run.said()
        self.run.check_course()
        self.run.check_certified()
        self.run.check_quiet()


RUNNER_FAULTS = ("kill_runner", "stop_runner", "raise_in_runner", "lie_in_runner")
LEARNER_FAULTS = ("spoil_gradient", "kill_learner")
DRIVER_FAULTS = ("kill_driver", "tear_checkpoint_and_kill_driver")
NODE_FAULTS = ("lose_node", "add_node", "add_node")


@pytest.fixture
def started(tmp_path):
    runs = []

    def start(*arguments):
        runs.append(FaultyRun(tmp_path, *LEARNING, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.mark.slow  # each fault alone: test_faults, test_resume and test_checkpoints
@pytest.mark.timeout(1800)
def test_a_little_chaos(started):
    """One of each kind on this machine, in an order of its own; the driver, and a file, at last."""
    print(f"CHAOS_SEED={SEED}")
    run = started()
    chaos = Chaos(run)
    chaos.goes_on()
    faults = ["kill_runner", "lie_in_runner", "kill_learner"]
    chaos.rng.shuffle(faults)
    for fault in faults:
        print(fault, flush=True)
        assert getattr(chaos, fault)() is not False
        chaos.goes_on()
    chaos.finish()


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_chaos_on_a_cluster(started, monkeypatch, tmp_path):
    """Ten minutes and at least twenty faults on a cluster of several raylets."""
    print(f"CHAOS_SEED={SEED}")
    with cluster_of_raylets(monkeypatch, tmp_path / "faults", head_cpus=2) as cluster:
        chaos = Chaos(None, cluster)
        chaos.add_node()
        chaos.add_node()
        chaos.run = started(
            *chaos.address,
            *("--set", "env_runners.custom_resources_per_env_runner={'runners': 1}"),
            *("--set", "env_runners.num_cpus_per_env_runner=0"),
        )
        chaos.goes_on()
        everything = (*RUNNER_FAULTS, *LEARNER_FAULTS, *DRIVER_FAULTS, *NODE_FAULTS)
        chaos.rage(everything, 60 * MINUTES, at_least=20)
        while len(chaos.nodes) < 2:
            chaos.add_node()
        chaos.finish()
        print(f"{len(chaos.done)} faults: {Counter(chaos.done)}; torn: {chaos.torn}")
