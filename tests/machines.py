"""A small network of machines on this one, for the cluster recipes: namespaces of the Linux kernel.

Each machine has its own address, host name, processes, /tmp, /dev/shm and /run, and /home and /srv
as folders that a test names, so that several can share them. All are inside of one more namespace,
their switch: with its first process everything ends, and nothing of it is seen from outside. Needs
root, and `ip`, `unshare` and `nsenter`, which every Debian has.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import site
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from processes import ROOT

USER, USER_ID = "toolagent", 20_017
HOME = Path("/home") / USER
PYTHON = "/usr/bin/python3.11"  # Debian's, which every user may run
PREFIX = "10.77.0."
# Ray gives its workers 15: on machines of one's own nothing else runs, but on this one.
NICENESS = "RAY_worker_niceness=0"
# What a checkout holds that the recipes read.
CHECKOUT = ("cluster", "toolagent", "rllib_configs", "pyproject.toml", "README.md", "LICENSE")


_NAMESPACES = (
    *("--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc"),
    *("--fork", "--kill-child"),
)
# The folders with the packages that run this test, and where each machine has them.
PACKAGES = {
    Path(path): Path(f"/srv/packages-{place}")
    for place, path in enumerate(site.getsitepackages())
    if Path(path).is_dir()
}


def _lacking() -> str:
    """What this machine lacks to be several."""
    if os.geteuid() != 0:
        return "namespaces of the kernel need root"
    if not Path(PYTHON).exists() or shutil.which("apt-get") is None:
        return "needs Debian, with Python 3.11"
    try:
        subprocess.run(["unshare", *_NAMESPACES, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the kernel allows no namespaces: {error}"
    return ""


LACKING = _lacking()
needs_machines = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def install(*packages: str) -> None:
    """Debian's packages; what is there is left as it is, and no service is started."""
    asked = ["dpkg-query", "--show", "--showformat=${db:Status-Status}\n", *packages]
    there = subprocess.run(asked, capture_output=True, text=True, check=False)
    if there.returncode == 0 and set(there.stdout.split()) == {"installed"}:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    arguments = ("install", "--yes", "--no-install-recommends", *packages)
    for command in (("update",), arguments):
        subprocess.run(["apt-get", "--quiet", *command], env=environment, check=True)


class Machine:
    """One machine: `first` is its first process, as the machine outside numbers it."""

    def __init__(self, name: str, address: str, first: int, folder: Path):
        self.name, self.address, self.first, self.folder = name, address, first, folder

    def command(self, line: str, user: str = USER) -> list[str]:
        """A line for bash there, as a login of that user would run it."""
        enter = ["nsenter", f"--target={self.first}", "--all", "--wd=/"]
        home = str(HOME) if user == USER else "/root"
        variables = [f"HOME={home}", f"USER={user}", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin"]
        variables.append(NICENESS)
        line = f"cd {shlex.quote(home)} && {line}" if user == USER else line
        shell = ["env", "--ignore-environment", *variables, "LANG=C.UTF-8", "bash", "-c", line]
        return [*enter, *(["runuser", f"--user={user}", "--"] if user == USER else []), *shell]

    def run(self, line: str, user: str = USER, timeout: float = 120, check: bool = True) -> str:
        """Runs it to its end; stdout and stderr together."""
        done = subprocess.run(
            self.command(line, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{self.name}: {line}: {done.stdout}"
        return done.stdout

    def start(self, line: str, log: Path, user: str = "root") -> subprocess.Popen[bytes]:
        """Starts it, and leaves it running."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(line, user),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """All that run there, but the first."""
        namespace = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                    found.append(process)
        return [process for process in found if process.pid != self.first]

    def command_lines(self, user: str = USER) -> list[str]:
        """Of the processes of that user there."""
        lines = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                number = process.uids().real
                if number == (USER_ID if user == USER else 0):
                    lines.append(" ".join(process.cmdline()))
        return lines


class Network:
    """The machines, by name; `end` ends all of them."""

    def __init__(self, folder: Path, names: Sequence[str]):
        """Prepares the files that all machines share: users and addresses."""
        self.folder = folder
        self.machines: dict[str, Machine] = {}
        self._addresses = {name: f"{PREFIX}{10 + place}" for place, name in enumerate(names)}
        self._etc = folder / "etc"
        # The whole folder: where a program replaces a file of this machine, as `useradd` does
        # with its users, the kernel takes away what others have mounted there.
        shutil.copytree("/etc", self._etc, symlinks=True)
        for file, line in (
            ("passwd", f"{USER}:x:{USER_ID}:{USER_ID}::{HOME}:/bin/bash"),
            ("group", f"{USER}:x:{USER_ID}:"),
            ("shadow", f"{USER}:*:19000:0:99999:7:::"),
        ):
            with (self._etc / file).open("a") as out:
                out.write(f"{line}\n")
        hosts = ["127.0.0.1 localhost", *(f"{a} {name}" for name, a in self._addresses.items())]
        (self._etc / "hosts").write_text("\n".join(hosts) + "\n")
        self.switch = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES, "sleep", "infinity"],
            start_new_session=True,
        )
        self._first = _only_child(self.switch.pid)
        self._in_switch("ip link set lo up; ip link add name br0 type bridge; ip link set br0 up")

    def _in_switch(self, line: str) -> None:
        subprocess.run(
            ["nsenter", f"--target={self._first}", "--net", "sh", "-ec", line], check=True
        )

    def add(
        self, name: str, home: Path, srv: Path, mounts: dict[Path, str] | None = None
    ) -> Machine:
        """Starts a machine. `mounts`: further folders of this machine, and where they are there."""
        own = self.folder / name
        tmp = own / "tmp"
        tmp.mkdir(parents=True)
        tmp.chmod(0o1777)
        for target in PACKAGES.values():
            (srv / target.name).mkdir(exist_ok=True)
        binds = {self._etc: "/etc", home: "/home", srv: "/srv", **(mounts or {}), **PACKAGES}
        setup = [
            "mount -t tmpfs -o mode=755 tmpfs /run",
            "mkdir -p /run/sshd /run/munge /run/lock",
            "mount -t tmpfs -o mode=1777,size=12g tmpfs /dev/shm",
            *(
                f"mount --bind {shlex.quote(str(source))} {target}"
                for source, target in binds.items()
            ),
            f"mount --bind {shlex.quote(str(tmp))} /tmp",
            f"hostname {name}",
            "ip link set lo up",
            # The first process takes in what others leave behind, as an init does.
            "exec bash -c 'while sleep 1000; do :; done'",
        ]
        process = subprocess.Popen(
            [
                *(
                    "nsenter",
                    f"--target={self._first}",
                    "--net",
                    "--mount",
                    "--pid",
                    "--ipc",
                    "--uts",
                ),
                *("unshare", *_NAMESPACES, "sh", "-ec", "; ".join(setup)),
            ],
            start_new_session=True,
        )
        # nsenter forks into the namespace of processes, and unshare into a new one.
        first = _only_child(_only_child(process.pid))
        address = self._addresses[name]
        self._in_switch(
            f"ip link add name {name} type veth peer name eth0 netns {first}; "
            f"ip link set dev {name} master br0 up"
        )
        machine = Machine(name, address, first, own)
        machine.run(
            f"ip addr add {address}/24 dev eth0; ip link set eth0 up; "
            f"ip route add default via {PREFIX}1",
            "root",
        )
        _wait(lambda: machine.run("hostname", "root").strip() == name)
        self.machines[name] = machine
        return machine

    def connect(self, name: str, connected: bool) -> None:
        """Plugs a machine's cable in, or pulls it: nobody is told anything."""
        self._in_switch(f"ip link set dev {name} {'up' if connected else 'down'}")

    def end(self) -> None:
        """Ends all machines, and every process on them."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self.switch.wait()


def _only_child(pid: int) -> int:
    return _wait(lambda: [child.pid for child in psutil.Process(pid).children()])[0]


def _wait(what, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def slowness() -> float:
    """How much longer than on an idle machine things take: programs that want each CPU now."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def owned_by_user(*paths: Path) -> None:
    """Gives the user everything in these folders."""
    for path in paths:
        subprocess.run(["chown", "--recursive", f"{USER_ID}:{USER_ID}", str(path)], check=True)


def user_home(folder: Path) -> Path:
    """What is mounted as /home: the user's folder in it, empty."""
    (folder / USER).mkdir(parents=True)
    owned_by_user(folder)
    return folder


def checkout(folder: Path) -> None:
    """Copies what the recipes read into `folder`."""
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    owned_by_user(folder)


def package_mirror(folder: Path) -> Path:
    """What `pip install` of a checkout needs beside the dependencies: what builds it."""
    folder.mkdir()
    pip = ["python3", "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    subprocess.run([*pip, "--only-binary=:all:", "hatchling>=1.25"], check=True)
    return folder


def prepare_venv(machine: Machine, home: Path, mirror: str) -> None:
    """`~/toolagent-venv` with the dependencies that run this test, so that pip loads none anew.

    The recipes' own commands make the venv and install toolagent into it; they find this one there,
    as on a machine where they have run before.
    """
    pip = "~/toolagent-venv/bin/pip"
    # Its setuptools, older than what PyTorch asks for, would hide the other.
    machine.run(f"{PYTHON} -m venv ~/toolagent-venv && {pip} uninstall --quiet --yes setuptools")
    venv = home / USER / "toolagent-venv"
    paths = "".join(f"{path}\n" for path in PACKAGES.values())
    (venv / "lib/python3.11/site-packages/dependencies.pth").write_text(paths)
    ray = venv / "bin" / "ray"
    ray.write_text(
        f"#!{HOME}/toolagent-venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n"
    )
    ray.chmod(0o755)
    settings = home / USER / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[global]\nno-index = true\nfind-links = {mirror}\n")
    owned_by_user(home)
