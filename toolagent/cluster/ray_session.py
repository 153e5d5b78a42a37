"""Starts Ray, or joins a cluster, quietly and safely."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from toolagent.cluster.address import check_address, no_cluster
from toolagent.cluster.code_transport import python_path, runtime_environment
from toolagent.cluster.temporary_folder import prepare_temporary_folder
from toolagent.cluster.token import prepare_token, token_is_sent, where_token_is
from toolagent.errors import UserError, check_text

_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_SETTINGS = {  # of Ray's processes
    # 15 by default: beside any other work, env runners hardly play.
    "worker_niceness": "0",
    # Up to this size (by default 100 kB) arguments and results are messages: the weights of a small
    # network take half as long as by the object store.
    "max_direct_call_object_size": str(1 << 20),
    # Who finds a socket not open yet looks again after 20 ms, not after a second; for 10 s as ever.
    "raylet_client_connect_timeout_milliseconds": "20",
    "raylet_client_num_connect_attempts": "500",
}
_PRELOADED = "RAY_preload_python_modules"
_LOOK_S = 2.0  # a look for the dashboard takes some milliseconds, while there is a cluster


@dataclass(frozen=True)
class Preload:
    """Worker processes of a cluster that is started, and what they import before they are needed:
    an actor that gets one of them starts at once."""

    workers: int  # at most as many as there are CPUs
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    """What there is to run on."""

    cpus: float
    gpus: float
    nodes: int
    joined: bool  # an existing cluster, not one started here
    # What each node offers: {"CPU": 8.0, "GPU": 1.0, ...}, custom resources among them.
    offers: tuple[Mapping[str, float], ...] = ()
    driver: Mapping[str, float] = field(default_factory=dict)  # the offer of the driver's node
    # Of Ray's dashboard: 'host:port', or None without one. One that is started here takes seconds.
    dashboard: Future[str | None] = field(default_factory=Future)
    start_dashboard: Callable[[], None] = lambda: None  # if one is to be started here, and is not
    # Begins to end it, beside what else is to be done; nothing may use Ray from then on.
    end: Callable[[], None] = lambda: None

    def tell_of_dashboard(self, tell: Callable[[str], None]) -> None:
        """Starts Ray's dashboard, if that is to be. Tells, line by line and once it answers, where
        it is, and where the token is that it asks for; nothing without one.

        While it loads it takes processor time: call this when there is some to spare."""

        def found(dashboard: Future[str | None]) -> None:
            if url := dashboard.result():
                tell(f"Ray dashboard: http://{url}")
                token = where_token_is() if not self.joined or token_is_sent() else None
                if token:
                    tell(f"  it asks for a token: {token}")

        self.start_dashboard()
        self.dashboard.add_done_callback(found)


def quiet() -> None:
    """Keeps Ray's and Python's warnings off the screen; to be called before Ray is imported.

    They are about Ray's own future, not about the run. Set `TOOLAGENT_VERBOSE=1` to see them.

    Ray's hook for `uv run` is switched off too: it would pack the working folder, whatever is in
    it, for workers that have the code already (on other machines by `code_transport`).
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if os.environ.get("TOOLAGENT_VERBOSE") == "1":
        return
    warnings.simplefilter("ignore")
    for name, value in {
        "PYTHONWARNINGS": "ignore",  # for Ray's worker processes
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        # Many env runners on few CPUs are what was asked for; what died is replaced and counted.
        # Both are said in lines of our own. (A lost node's agent sends the end of a raylet's log.)
        "RAY_DEDUP_LOGS_SKIP_REGEX": (
            "worker processes have been started on node|A worker died or was killed|"
            "has been marked dead|Raylet is terminated"
        ),
    }.items():
        os.environ.setdefault(name, value)
    # The last one's own: Ray's import sets the level of all, and tells a notebook what to install.
    for name in ("ray", "ray.rllib", "ray.tune", "ray.widgets"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def cluster_to_join(address: str | None) -> str | None:
    """What `--address` means: a cluster to join, or None where one is to be started here, as
    'local' says too. Ray is made quiet, and a cluster of this process kept off the network.

    Raises:
        UserError: it is empty, as an unset variable of a shell is.
    """
    quiet()
    if address is not None and not address.strip():
        raise UserError("--address: is empty; name HOST:PORT, or leave it out to start a cluster")
    if address is not None and address != "local":
        return address
    listen_on_loopback()
    return None


def listen_on_loopback() -> None:
    """Keeps a cluster started by this process off the network; call it before Ray is imported.

    By default Ray's servers on Linux listen on all interfaces. Its switch for machines that can't
    form clusters makes 127.0.0.1 this node's address, and that the only one they listen on.
    """
    os.environ.setdefault(_CLUSTERS, "0")


@contextlib.contextmanager
def ray_session(
    address: str | None,
    dashboard: bool,
    document: dict[str, Any] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    preload: Preload | None = None,
) -> Iterator[Cluster]:
    """Ray for the length of a run: a cluster of this machine, or the one at `address`.

    A cluster started here asks every client for a token (Ray's default for `ray.init()`), ends with
    the run and, after `listen_on_loopback()`, can't be reached from other machines. The code gets
    to its workers, and to the nodes of one that is joined (`code_transport`).

    Args:
        address: of a cluster to join; None: start one.
        dashboard: of a cluster that is started; it is started by `Cluster.tell_of_dashboard`.
        document: the configuration, for the code that it names.
        meanwhile: called while the processes of a cluster that is started load, which takes a
            second or two; or before one is joined.
        preload: for a cluster that is started; None: Ray's own workers, which import nothing.

    Raises:
        UserError: Ray runs in this process already, or does not start; there is no cluster at
            `address`, or it can't be joined; there is no token where the environment says; or Ray's
            sockets can't be where it says.
    """
    _check_not_running()
    _check_paths()
    prepare_token(create=not address)
    if not address:
        prepare_temporary_folder()
    import ray

    from toolagent.cluster.ray_internals import (
        dashboard_address,
        lean_node,
        loopback_only,
        own_sigterm_handler,
        shut_down_beside,
        start_dashboard,
    )

    # "local": without it, Ray would join whatever cluster `ray start` has left on this machine.
    options: dict[str, Any] = {
        "address": "local",
        "include_dashboard": dashboard,
        "dashboard_host": "127.0.0.1",
        "num_cpus": usable_cpus(),
    }
    for name, value in _SETTINGS.items():
        os.environ.setdefault(f"RAY_{name}", value)
    if address:
        check_address(address)
        options = {"address": address, "runtime_env": runtime_environment(document or {})}
    # Who sets the variable to 1 wants a cluster that others can join.
    local = not address and os.environ.get(_CLUSTERS) == "0"
    with (
        _quiet_stderr(),
        own_sigterm_handler(),
        _hangup_held(),
        python_path({} if address else document or {}),
        loopback_only() if local else contextlib.nullcontext(),
        _preloaded(preload) as workers,
        lean_node(workers, meanwhile),
    ):
        if address:
            meanwhile()
        try:
            context = ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except Exception as error:  # a bare one says that Ray's node did not come up in time
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if address:
                raise no_cluster(address, reason) from None
            raise UserError(f"Ray did not start on this machine: {reason}") from None
    found: Future[str | None] = Future()
    ending, ended = list[Thread](), Event()

    def find_dashboard() -> None:
        url = dashboard_address(ended)
        if not ended.is_set():
            found.set_result(url)

    finding = Thread(target=find_dashboard, name="find-dashboard", daemon=True)

    def start_it() -> None:
        if not found.done() and finding.ident is None and not ended.is_set():
            with _hangup_held(), loopback_only() if local else contextlib.nullcontext():
                start_dashboard()
            finding.start()

    def look_no_further() -> None:
        ended.set()
        if finding.ident is not None:
            finding.join(_LOOK_S)

    def end() -> None:
        look_no_further()
        ending.append(shut_down_beside())

    try:
        quiet()
        if address or not dashboard:
            found.set_result(context.dashboard_url or None)
        offers = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        yield Cluster(
            cpus=sum(offer.get("CPU", 0.0) for offer in offers.values()),
            gpus=sum(offer.get("GPU", 0.0) for offer in offers.values()),
            nodes=len(offers),
            joined=address is not None,
            offers=tuple(offers.values()),
            driver=offers.get(ray.get_runtime_context().get_node_id(), {}),
            dashboard=found,
            start_dashboard=start_it,
            end=end,
        )
    finally:
        look_no_further()
        with own_sigterm_handler():  # a request to stop may come after it too
            for thread in ending:
                thread.join()
            ray.shutdown()  # if it was not ended early


@contextlib.contextmanager
def _preloaded(preload: Preload | None) -> Iterator[int | None]:
    """Workers of a node that is started in the block import the modules as they start. One that
    can't is left to who needs it: it fails there again.

    Returns:
        How many are to start with the node; None: as many as Ray will have.
    """
    if preload is None:
        yield None
        return
    os.environ[_PRELOADED] = ",".join(preload.modules)
    try:
        yield min(preload.workers, usable_cpus())
    finally:
        del os.environ[_PRELOADED]


@contextlib.contextmanager
def _hangup_held() -> Iterator[None]:
    """Ray's processes inherit that SIGHUP is blocked, as Ray itself blocks SIGINT in them.

    A terminal that is closed sends it to all of them, and the driver could write no checkpoint
    without its cluster. One that comes in here is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_cpus() -> int:
    """The CPUs that a local cluster has to share out: Ray sees a container's quota and not the
    process's affinity (`taskset`, Slurm); the smaller one counts."""
    from toolagent.cluster.ray_internals import cpus_that_ray_sees

    return max(1, min(cpus_that_ray_sees(), len(os.sched_getaffinity(0))))


def _check_not_running() -> None:
    """Raises UserError in a program that uses Ray itself: it would lose its cluster at the end."""
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise UserError(
            "Ray runs in this program already; end it with ray.shutdown() before: a run starts "
            "Ray, or joins the cluster that RAY_ADDRESS names, and leaves it at its end"
        )


def _check_paths() -> None:
    """Ray passes on the paths that it works with as text.

    Raises:
        UserError: one of them has bytes that are none, or that the locale's encoding can't read.
    """
    check_text("the current folder", os.getcwd(), "use another folder")
    check_text("TMPDIR", tempfile.gettempdir(), "use another folder")
    check_text("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", ""), "use another folder")
    for path in sys.path:
        check_text("Python's path", path, "use another folder")


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
            with contextlib.suppress(OSError):  # nobody may be there to read it
                os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
