"""Brings up the nodes that a command needs, runs it, and lets the nodes go again.

    python with_nodes.py --cpus 32 --gpus 1 -- python -m toolagent.run --num-env-runners 32 ...

`toolagent.run` fits its actors onto the CPUs and GPUs that a cluster has when it starts: with fewer
CPUs than it asks for the env runners share what there is, and nothing makes the autoscaler add
nodes. So this asks the autoscaler first and waits. Without an autoscaler it only waits.

The request holds until the command ends, however it ends. Only after a SIGKILL of this process it
stays; `python with_nodes.py -- true` takes it back. The exit code is the command's; 1 if the
nodes did not come in time. The cluster is the one at `RAY_ADDRESS`, or this machine's own.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

POLL_S = 5.0
MAX_COUNT = 100_000  # the autoscaler is told of each single CPU


class Stop:
    """Takes SIGINT and SIGTERM: before the command runs they end the waiting.

    Once it runs they are left to it. Both Ctrl-C and `ray job stop` send theirs to this process and
    to the command; one passed on from here would be its second, which ends a run without a
    checkpoint. To be made after Ray has connected, which sets a handler of its own. To `listen`
    anew after Ray has disconnected, which leaves none: SIGTERM would end this process before the
    command, and who waits for it would take the cluster away from the command.
    """

    def __init__(self) -> None:
        self.requested = False
        self.listen()

    def listen(self) -> None:
        """Takes the signals, whoever has them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)  # not inherited by the command, unlike SIG_IGN

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = _parsed(arguments)
    if options.cwd is not None:
        os.chdir(options.cwd)
    try:
        _connect()
    except ConnectionError as error:
        reason = " ".join(str(error).split())
        print(f"error: there is no Ray cluster to join ({reason})", file=sys.stderr)
        return 2
    stop = Stop()
    try:
        _request(options.cpus, options.gpus)
        if not _wait(options.cpus, options.gpus, options.wait_s, stop):
            return 130 if stop.requested else 1
        code = subprocess.run(options.command, check=False).returncode
        return code if code >= 0 else 128 - code  # ended by a signal, as a shell says it
    finally:
        _release()


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(description="Runs a command on a Ray cluster that has been made large enough.")
    parser.add_argument("--cpus", type=_count, default=0, metavar="N", help="CPUs, of all nodes")
    parser.add_argument("--gpus", type=_count, default=0, metavar="N", help="GPUs, of all nodes")
    parser.add_argument("--wait-s", type=_seconds, default=1800.0, metavar="X", help="default 1800")
    parser.add_argument("--cwd", metavar="DIR", help="run it there; default: where this is run")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args(arguments)
    if shutil.which(options.command[0]) is None:
        parser.error(f"there is no command '{options.command[0]}'")
    if options.cwd is not None and not os.path.isdir(options.cwd):
        parser.error(f"--cwd {options.cwd}: there is no such folder")
    return options


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else -1
    if not 0 <= number <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 0 to {MAX_COUNT:,}")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return seconds


def _connect() -> None:
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)


def _request(cpus: int, gpus: int) -> None:
    """Asks for room for single CPUs and single GPUs: what env runners and learners ask for."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"CPU": 1}] * cpus + [{"GPU": 1}] * gpus)


def _wait(cpus: int, gpus: int, wait_s: float, stop: Stop) -> bool:
    """Until the cluster has them; then disconnects, so that the command is alone in it."""
    import ray

    deadline, said = time.monotonic() + wait_s, ""
    while not stop.requested:
        has = ray.cluster_resources()
        there = f"{has.get('CPU', 0):g} of {cpus} CPUs, {has.get('GPU', 0):g} of {gpus} GPUs"
        if has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus:
            ray.shutdown()
            stop.listen()
            return True
        if time.monotonic() > deadline:
            print(f"error: after {wait_s:g} s the cluster has {there}", file=sys.stderr)
            return False
        if there != said:
            print(f"waiting for nodes: {there}", flush=True)
            said = there
        time.sleep(POLL_S)
    return False


def _release() -> None:
    import ray
    from ray.autoscaler.sdk import request_resources

    try:
        if not ray.is_initialized():
            _connect()
        request_resources(bundles=[])
    except Exception as error:  # the cluster may be gone; the command's result stands
        print(f"warning: the request for nodes stays ({error})", file=sys.stderr)
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
