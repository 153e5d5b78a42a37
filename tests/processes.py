"""The commands as a user starts them: processes with a group of their own, and how they end."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parent.parent
WAIT_S = 300.0  # on a busy machine; a quiet one needs a tenth


def own_environment(**changes: str) -> dict[str, str]:
    """This process's, in which toolagent is found; lines are 80 characters long."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    environment.pop("TOOLAGENT_VERBOSE", None)
    return environment | changes


def start(
    module: str,
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Starts `python -m MODULE ...` in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=own_environment() if env is None else env,
        start_new_session=True,
    )


def start_logged(
    command: list[str],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts any command in a process group of its own; what it says goes into the file `log`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, cwd=cwd, env=env, start_new_session=True
        )


def kill(process: subprocess.Popen[Any]) -> None:
    """Kills the process and all of its group, whoever of them is left, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def output_of(process: subprocess.Popen[str], timeout: float = 400) -> tuple[str, str]:
    """Waits for the end: stdout and stderr. Who does not end in time is killed."""
    try:
        return process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            kill(process)


def end(process: subprocess.Popen[str], code: int | None = None, timeout: float = 400) -> str:
    """Waits for the end: stdout. What works writes nothing on stderr and warns of nothing."""
    out, err = output_of(process, timeout)
    assert code in (None, process.returncode), out + err
    assert err == ""
    assert "warning" not in out.lower()
    return out


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any], with_signal: int) -> Iterator[None]:
    """Ends the process after the block, and kills its group if it does not listen."""
    try:
        yield
        process.send_signal(with_signal)
        process.wait(WAIT_S)
    finally:
        kill(process)


def wait_for(what: Callable[[], Any], failure: str = "", seconds: float = WAIT_S) -> Any:
    """The first true value of `what`, which is asked again and again."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # nobody listens yet
            if last := what():
                return last
        time.sleep(0.1)
    raise AssertionError(f"{failure or what} did not come to be; last: {last}")


def lines_of(stream: IO[str] | None) -> Iterator[str]:
    """The lines of a process's output as they come."""
    assert stream is not None
    return iter(stream.readline, "")


def listening_addresses(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses on which these processes accept connections; one may end meanwhile."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


# Below what the system gives out by itself, and above what Ray takes: nobody else takes one between
# now and its use. Each of the workers that test side by side has its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(20_000 + _WORKER % 8 * 1_500, 20_000 + (_WORKER % 8 + 1) * 1_500))


def free_port() -> int:
    """A port that nobody listens at, and that no other call of this process gives out soon."""
    for port in _PORTS:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def start_server(
    command: list[str | Path], url: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A server's process, once something answers at `url`."""
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return process
        except OSError:
            if time.monotonic() > deadline:
                process.kill()
                raise
            time.sleep(0.1)
