"""A real Slurm: a controller, where jobs are submitted, and three nodes, each a machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from machines import (
    HOME,
    USER,
    Network,
    _wait,
    checkout,
    install,
    package_mirror,
    prepare_venv,
    user_home,
)

NODES = ("n1", "n2", "n3")
CHECKOUT = HOME / "checkout"

# Nodes say that they have 4 CPUs, whatever this machine has.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=login
AuthType=auth/munge
SlurmUser=root
StateSaveLocation=/etc/slurm/state
SlurmdSpoolDir=/run/slurmd
SlurmdPidFile=/run/slurmd.pid
SlurmctldPidFile=/run/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=30
SchedulerParameters=bf_interval=2,sched_interval=2
NodeName=n[1-3] CPUs=4 RealMemory=8000
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE OverSubscribe=YES
"""


class Slurm:
    """The cluster; home folders are on a disk that all its machines share."""

    def __init__(self, folder: Path):
        install("slurm-wlm", "munge", "iproute2", "python3-venv")
        home = user_home(folder / "home")
        self.home = home / USER
        etc, munge, srv = folder / "slurm", folder / "munge", folder / "srv"
        for each in (etc, munge, srv):
            each.mkdir()
        (etc / "state").mkdir()
        (etc / "slurm.conf").write_text(CONFIGURATION)
        (munge / "munge.key").write_bytes(os.urandom(128))
        (munge / "munge.key").chmod(0o400)
        self.log = folder / "log"
        self.log.mkdir()
        package_mirror(srv / "mirror")
        self.network = Network(folder, ("login", *NODES))
        mounts = {etc: "/etc/slurm", munge: "/etc/munge"}
        for name in ("login", *NODES):
            machine = self.network.add(name, home, srv, mounts)
            machine.start(
                "chmod 711 /run/munge; exec munged --foreground --force "
                "--log-file=/run/munge/log --seed-file=/run/munge/seed",
                self.log / f"munged-{name}",
            )
        self.login = self.network.machines["login"]
        self.nodes = {name: self.network.machines[name] for name in NODES}
        _wait(lambda: "Success" in self.login.run("munge -n | unmunge", "root", check=False))
        self.login.start("exec slurmctld -D", self.log / "slurmctld")
        for name in NODES:
            self.start_node(name)
        self.wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), 60)
        prepare_venv(self.login, home, "/srv/mirror")
        self.checkout = self.home / "checkout"
        self.checkout.mkdir()
        checkout(self.checkout)
        sizes = (
            ("#SBATCH --gpus-per-node=1\n", ""),
            ("--cpus-per-task=4 --mem=16G", "--cpus-per-task=1 --mem=3G"),
            ("--cpus-per-task=16 --mem=32G", "--cpus-per-task=2 --mem=3G"),
        )
        self.script("slurm", *sizes)
        self.login.run(f"cd {CHECKOUT} && ~/toolagent-venv/bin/pip install --quiet .", timeout=300)

    def start_node(self, name: str) -> None:
        self.nodes[name].start("mkdir -p /run/slurmd; exec slurmd -D", self.log / f"slurmd-{name}")

    def resume(self, name: str) -> None:
        """Takes a node that was set down into service again."""
        self.login.run(f"scontrol update NodeName={name} State=RESUME", "root", check=False)

    def states(self) -> dict[str, str]:
        """Of the nodes, as Slurm calls them."""
        lines = self.login.run("sinfo --noheader --Node --format='%N %t'", check=False).splitlines()
        pairs = [line.split() for line in lines]
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def wait_for(self, what, seconds: float):
        return _wait(what, seconds)

    def script(self, name: str, *changes: tuple[str, str]) -> str:
        """A copy of the recipe with other settings, in the same folder; its path from there."""
        content = (self.checkout / "cluster" / "slurm.sh").read_text()
        for before, after in changes:
            assert before in content, before
            content = content.replace(before, after)
        (self.checkout / "cluster" / f"{name}.sh").write_text(content)
        return f"cluster/{name}.sh"

    def submit(self, *arguments: str, script: str = "cluster/slurm.sh", options: str = "") -> str:
        line = f"cd {CHECKOUT} && sbatch {options} {script} {' '.join(arguments)}"
        said = self.login.run(line)
        return re.search(r"Submitted batch job (\d+)", said).group(1)

    def state(self, job: str) -> str:
        """Of a job's first part: PENDING, RUNNING, COMPLETED, ..."""
        said = self.login.run(f"scontrol --oneliner show job {job}", check=False)
        found = re.search(r"JobState=(\w+)", said)
        return found.group(1) if found else said.strip()

    def left(self) -> list[str]:
        """What jobs have left: processes and temporary folders on the nodes, tokens on the disk."""
        found = [str(path) for path in self.checkout.glob(".toolagent-*")]
        for name, machine in self.nodes.items():
            found += [f"{name}: {line}" for line in machine.command_lines()]
            found += [f"{name}: {path.name}" for path in (machine.folder / "tmp").iterdir()]
        return found

    def end(self) -> None:
        self.network.end()
