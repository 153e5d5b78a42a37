"""Starts Ray, or joins a cluster, quietly and safely."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolagent.errors import UserError
from toolagent.session.token import prepare_token

_REACHABLE_WITHIN_S = 5.0


@dataclass(frozen=True)
class Cluster:
    """What there is to run on."""

    cpus: float
    gpus: float
    nodes: int
    dashboard_url: str | None
    joined: bool  # an existing cluster, not one started here


def quiet() -> None:
    """Keeps Ray's and Python's warnings off the screen; to be called before Ray is imported.

    They are about Ray's own future, not about the run. Set `TOOLAGENT_VERBOSE=1` to see them.
    """
    if os.environ.get("TOOLAGENT_VERBOSE") == "1":
        return
    warnings.simplefilter("ignore")
    for name, value in {
        "PYTHONWARNINGS": "ignore",  # for Ray's worker processes
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        # Many env runners on few CPUs are what was asked for, and said in a line of our own.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def listen_on_loopback() -> None:
    """Keeps a cluster started by this process off the network; call it before Ray is imported.

    By default Ray's servers on Linux listen on all interfaces. Its switch for machines that can't
    form clusters makes 127.0.0.1 this node's address, and that the only one they listen on.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@contextlib.contextmanager
def ray_session(address: str | None, dashboard: bool) -> Iterator[Cluster]:
    """Ray for the length of a run: a cluster of this machine, or the one at `address`.

    A cluster started here asks every client for a token (Ray's default for `ray.init()`), ends with
    the run and, after `listen_on_loopback()`, can't be reached from other machines.

    Raises:
        UserError: there is no cluster at `address`, or it refuses the token; or there is no token
            where the environment says.
    """
    prepare_token(create=not address)
    import ray

    options: dict[str, Any] = {"include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
    if address:
        options = {"address": address}
        _check_reachable(address)
    with _quiet_stderr():
        try:
            context = ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if not address:
                raise
            raise _no_cluster(address, str(error).strip().splitlines()[0]) from None
    try:
        quiet()
        resources = ray.cluster_resources()
        yield Cluster(
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            nodes=sum(1 for node in ray.nodes() if node["Alive"]),
            dashboard_url=context.dashboard_url or None,
            joined=address is not None,
        )
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody listens; Ray itself would try for minutes.

    Raises:
        UserError: no connection to host:port (with or without 'ray://'). Whatever is no host:port
            ('auto', 'local', ...) is left to Ray.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHABLE_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, reason: str) -> UserError:
    return UserError(
        f"--address {address}: no Ray cluster answers there ({reason}); "
        "is it up, and does this machine hold its token?"
    )


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what Ray's C++ side writes to file descriptor 2; shown only if there is a bug."""
    if os.environ.get("TOOLAGENT_VERBOSE") == "1":
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
