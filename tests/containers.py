"""Containers for `cluster/Containerfile` and the pods of `cluster/kubernetes/`: buildah and podman.

Ray's image is replaced by one that is made here: Debian's own packages, Python 3.11, Ray from the
package index, and Ray's user (1000, /home/ray). It stays, as installed packages do: `buildah rmi
toolagent-test-ray`. Needs root; all else goes with `Containers.end`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import processes
from machines import install, slowness
from processes import ROOT

BASE = "localhost/toolagent-test-ray:2.60.0"
IMAGE = "localhost/toolagent-test:0.1"
# wget and the others: what Ray's image has of what the recipes, or KubeRay's probes, call.
PACKAGES = "ca-certificates,python3.11,python3.11-venv,procps,wget,rsync,openssh-client"
BASE_FILE = """
FROM scratch
ADD debian.tar /
RUN useradd --create-home --shell /bin/bash --uid 1000 --gid 100 ray
USER 1000
ENV HOME=/home/ray LC_ALL=C.UTF-8 LANG=C.UTF-8
ENV PATH=/home/ray/anaconda3/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /home/ray
RUN python3.11 -m venv /home/ray/anaconda3 \\
    && pip install --no-cache-dir 'ray[default,rllib,serve]==2.60.0'
"""


def wait_for(what):
    """The first true value of `what`, with more time where other programs want the CPUs."""
    return processes.wait_for(what, seconds=processes.WAIT_S * slowness())


class Containers:
    """podman, in a file system namespace of its own, where no cgroup of version 2 is mounted."""

    def __init__(self, folder: Path):
        install("buildah", "podman", "crun", "mmdebstrap", "iptables")
        self._folder = folder
        self._settings = folder / "containers.conf"
        limits = [f'"{name}={value}:{value}"' for name, value in _limits().items()]
        self._settings.write_text(f"[containers]\ndefault_ulimits = [{', '.join(limits)}]\n")
        # crun refuses a machine with both versions of cgroups.
        line = "umount /sys/fs/cgroup/unified 2>/dev/null; exec sleep infinity"
        self._namespace = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", line),
            ],
            start_new_session=True,
        )
        wait_for(lambda: _command_line(self._namespace.pid)[0] == "sleep")
        self._made: list[tuple[str, ...]] = [("rmi", "--force", IMAGE)]

    def command(self, *arguments: object) -> list[str]:
        """A podman command."""
        enter = ["nsenter", f"--target={self._namespace.pid}", "--mount", f"--wd={self._folder}"]
        settings = f"CONTAINERS_CONF={self._settings}"
        return [*enter, "env", settings, "podman", *map(str, arguments)]

    def podman(self, *arguments: object, check: bool = True, timeout: float = 600) -> str:
        """Runs it to its end; stdout and stderr together."""
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"podman {arguments}: {done.stdout}"
        return done.stdout.strip()

    def start(self, name: str, *arguments: object) -> None:
        """Starts a container, which goes at the end. One that fails is started again, as Kubernetes
        does: Ray ends where it does not come up within 30 s, on a machine with much else to do.
        """
        self._made.insert(0, ("rm", "--force", "--time", "0", name))
        self.podman(
            "run", "--detach", "--replace", "--restart", "on-failure:5", "--name", name, *arguments
        )

    def state(self, name: str) -> tuple[str, int]:
        """('running' or 'exited', the exit code)."""
        said = self.podman("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name)
        status, code = said.split()[-2:]
        return status, int(code)

    def volume(self, name: str) -> Path:
        """A new volume, and its folder on this machine."""
        self.podman("volume", "rm", "--force", name)  # of a test before this one
        self._made.insert(-1, ("volume", "rm", "--force", name))
        self.podman("volume", "create", name)
        where = self.podman("volume", "inspect", "--format", "{{.Mountpoint}}", name)
        return Path(where.splitlines()[-1])

    def at_the_end(self, *arguments: str) -> None:
        """A podman command that takes away what another one made."""
        self._made.insert(0, arguments)

    def build(self) -> None:
        """`cluster/Containerfile`, on the base that is made if it is not there."""
        if subprocess.run(["buildah", "inspect", BASE], capture_output=True).returncode != 0:
            self._build_base()
        index = self._folder / "index"
        _torch_index(index / "torch")
        self._build(
            ROOT,
            *("--file", str(ROOT / "cluster" / "Containerfile"), "--tag", IMAGE),
            *("--volume", f"{index}:/index:ro"),
            *("--build-arg", f"RAY_IMAGE={BASE}"),
            *("--build-arg", "PIP_EXTRA_INDEX_URL=file:///index"),
        )

    def build_redis(self, base: str) -> None:
        """An image with Debian's Redis."""
        folder = self._folder / "redis"
        folder.mkdir(exist_ok=True)
        (folder / "Containerfile").write_text(
            f"FROM {base}\nUSER 0\n"
            "RUN apt-get update && apt-get install -y --no-install-recommends redis-server\n"
        )
        self._made.append(("rmi", "--force", "localhost/toolagent-test-redis"))
        self._build(folder, "--tag", "localhost/toolagent-test-redis")

    def _build_base(self) -> None:
        folder = self._folder / "base"
        folder.mkdir()
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"),
                *("bookworm", str(folder / "debian.tar"), "http://deb.debian.org/debian"),
            ],
            check=True,
        )
        (folder / "Containerfile").write_text(BASE_FILE)
        self._build(folder, "--tag", BASE)
        shutil.rmtree(folder)

    def _build(self, folder: Path, *arguments: str) -> None:
        build = ["buildah", "bud", "--isolation=chroot", "--network=host"]
        # As on this machine; what a proxy signs is trusted too.
        certificates = ("--volume", "/etc/ssl/certs:/etc/ssl/certs:ro")
        log = self._folder / "build.log"
        with log.open("wb") as out:
            done = subprocess.run(
                [*build, *certificates, *arguments, str(folder)], stdout=out, stderr=out
            )
        assert done.returncode == 0, log.read_text()[-5_000:]

    def end(self) -> None:
        """Takes away every container, volume and image made, but for the base."""
        for command in self._made:
            self.podman(*command, check=False)
        self._namespace.kill()
        self._namespace.wait()


def _limits() -> dict[str, int]:
    """What podman raises for a container, at most what this process may have."""
    asked = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    most = {"nofile": 1_048_576, "nproc": 32_768}
    limits = {}
    for name, number in asked.items():
        hard = resource.getrlimit(number)[1]
        limits[name] = most[name] if hard == resource.RLIM_INFINITY else min(hard, most[name])
    return limits


def _command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return [""]


def _torch_index(folder: Path) -> None:
    """A package index with one package: the torch that pip finds here, often one without CUDA."""
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, "--only-binary=:all:", "torch>=2.7,<2.14"], check=True)
    (wheel,) = os.listdir(folder)
    (folder / "index.html").write_text(f'<a href="{wheel.replace("+", "%2B")}">{wheel}</a>\n')
