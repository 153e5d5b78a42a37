"""Every use of a private part of Ray or RLlib, each with its reason and what is missing.

No other file touches one (`tests/test_ray_internals.py` looks). The same tests fail where a new
version of Ray makes an entry unnecessary or wrong. Ray is imported within the functions: it has to
be prepared first (`ray_session.quiet`), and no command should import more of it than it uses.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_DASHBOARD_NICENESS = 10  # more than this process's
_WORKERS = re.compile(r"^(--num_prestart_python_workers=)\d+$")  # of the raylet's command
# What `ray.dashboard.optional_deps` imports.
_DASHBOARD_PACKAGES = (
    *("aiohttp", "aiohttp_cors", "grpc", "opencensus", "opentelemetry", "prometheus_client"),
    "pydantic",
)
_POLL_S = 0.2
_NODE_POLL_S, _NODE_LIMIT_S = 0.02, 30.0  # the limit is Ray's own


def actor_manager(group: Any) -> Any:
    """RLlib's manager of the actors in a LearnerGroup or EnvRunnerGroup.

    Missing: a public way to learn which learners are healthy, or to end an actor of a group.
    (`LearnerGroup` has none of either; `EnvRunnerGroup` counts its healthy actors only.)

    Returns:
        A `FaultTolerantActorManager`; None for a local learner, or for no group at all.
    """
    return getattr(group, "_worker_manager", None)


def learner_manager(algorithm: Any) -> Any:
    """The manager of an algorithm's remote learners; None without any."""
    return actor_manager(getattr(algorithm, "learner_group", None))


def weights_number(env_runner: Any) -> int:
    """The number of the weights with which a `SingleAgentEnvRunner` plays.

    Missing: a public name; RLlib logs it as a metric, after `on_sample_end`.
    """
    return int(env_runner._weights_seq_no)


class TemporaryLogFolder:
    """For Algorithms: the log folder outside Tune is a temporary one, and ends with the object.

    RLlib makes one for each Algorithm in `~/ray_results`, writes nothing into it and leaves it
    there. Missing: an option for its place (`logger_creator` is gone since Ray 2.4x).
    """

    _storage: Any  # Tune's, within a trial
    _logdir: str

    def _setup_logdir(self) -> None:
        if self._storage:
            super()._setup_logdir()  # type: ignore[misc]
            return
        self._temporary_log_folder = tempfile.TemporaryDirectory(prefix="toolagent-")
        self._logdir = self._temporary_log_folder.name


@contextlib.contextmanager
def spread_env_runners() -> Iterator[None]:
    """Algorithms that are built in the block spread their env runners over the cluster's nodes.

    By default Ray fills a node to one half before it begins the next, so a cluster that is not full
    has its env runners on few nodes, and a lost node costs more of them than it should. Not for
    trials of Tune: those have places of their own reserved (a placement group).

    Missing: an option of RLlib for the actors' scheduling strategy (its `placement_strategy` is
    Tune's), and one for the class of the group.
    """
    from ray.rllib.algorithms import algorithm
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    class SpreadEnvRunnerGroup(EnvRunnerGroup):
        def _setup(self, **kwargs: Any) -> None:
            self._remote_args["scheduling_strategy"] = "SPREAD"  # restarts included
            super()._setup(**kwargs)

    with _replaced(algorithm, "EnvRunnerGroup", SpreadEnvRunnerGroup):
        yield


@contextlib.contextmanager
def learner_backend(make_config: Callable[[], Any]) -> Iterator[None]:
    """Remote learners that are started in the block join by this backend.

    Missing: an option of RLlib for it; its LearnerGroup asks this function.

    Args:
        make_config: makes a `ray.train.backend.BackendConfig`.
    """
    from ray.rllib.core.learner import learner_group

    with _replaced(learner_group, "_get_backend_config", lambda learner_class: make_config()):
        yield


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """A cluster that `ray.init()` starts in the block listens on 127.0.0.1 only, also where the
    program had imported Ray before `ray_session.listen_on_loopback` could set the variable.

    Missing: an option of `ray.init()` for the address; the variable is read at Ray's import.
    """
    from ray._private import ray_constants

    with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def lean_node(workers: int | None, started: Callable[[], None]) -> Iterator[None]:
    """A node that `ray.init()` starts in the block has no more processes than are of use here, and
    waits for no more than it needs.

    Its dashboard is started by `start_dashboard`. Without a dashboard, Ray would start its process
    all the same, to report usage. Left out too are the monitor of an autoscaler, and that of the
    logs, which sends them to a driver that does not want them.

    The raylet starts no worker before the agents of the node have opened their ports. One of these
    has a fixed number by default; where another cluster of the machine has it, the agent tries for
    three seconds to get it. Here it is a free one, as the others are. Ray looks once a second
    whether the node is there; here it is asked when it is.

    Missing: options of `ray.init()` for all of this.

    Args:
        workers: that are started with the node, before there is anything to do; None: one a CPU.
        started: called when the processes of the node are started: they load for a second or two.
    """
    from ray._private import node, services, utils

    start_process, start_processes = services.start_ray_process, node.Node.start_ray_processes

    def start_with_free_ports(self: Any) -> None:
        self._ray_params.dashboard_agent_listen_port = 0
        with _replaced(services, "start_ray_process", start_with_workers):
            start_processes(self)
        started()

    def start_with_workers(command: list[str], *args: Any, **options: Any) -> Any:
        if workers is not None:
            command = [_WORKERS.sub(rf"\g<1>{workers}", word) for word in command]
        return start_process(command, *args, **options)

    def start_no_dashboard(self: Any, **_: Any) -> None:
        self._webui_url = ""

    with (
        _replaced(utils, "get_dashboard_dependency_error", _missing_of_the_dashboard),
        _replaced(services, "get_node", functools.partial(_node_at_once, services.get_node)),
        _replaced(node.Node, "start_ray_processes", start_with_free_ports),
        _replaced(node.Node, "start_api_server", start_no_dashboard),
        _replaced(node.Node, "start_monitor", lambda self: None),
        _replaced(node.Node, "start_log_monitor", lambda self: None),
    ):
        yield


def _node_at_once(get_node: Callable[..., Any], gcs_address: str, node_id: str) -> Any:
    """Ray's function, which looks for a node once a second, called when the node is there."""
    import ray._raylet

    core: Any = ray._raylet
    store, wanted = core.GcsClient(address=gcs_address), core.NodeID.from_hex(node_id)
    until = time.monotonic() + _NODE_LIMIT_S
    while time.monotonic() < until and wanted not in store.get_all_node_info(timeout=_NODE_LIMIT_S):
        time.sleep(_NODE_POLL_S)
    return get_node(gcs_address, node_id)


def start_dashboard() -> None:
    """Starts the dashboard of a `lean_node`, at a lower priority than those who train, and does not
    wait for it: it loads for some seconds. To be called in the thread that started the node.

    Missing: `ray.init()` starts it with the node, and waits for it.
    """
    from ray._private import ray_constants, services, utils, worker

    node: Any = worker._global_node
    start, start_process = services.start_api_server, services.start_ray_process
    started: list[Any] = []

    def start_process_behind(*args: Any, **options: Any) -> Any:
        started.append(start_process(*args, **options))
        niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + _DASHBOARD_NICENESS)
        os.setpriority(os.PRIO_PROCESS, started[0].process.pid, niceness)
        return started[0]

    def start_without_waiting(*args: Any, **options: Any) -> Any:
        start(*args, **options)  # gives up at once, and leaves it running
        return "", next(iter(started), None)

    with (
        _replaced(utils, "get_dashboard_dependency_error", _missing_of_the_dashboard),
        _replaced(services, "start_api_server", start_without_waiting),
        _replaced(services, "start_ray_process", start_process_behind),
        _replaced(ray_constants, "RAY_DASHBOARD_STARTUP_TIMEOUT_S", 0),
    ):
        node.start_api_server(include_dashboard=True, raise_on_failure=False)


def _missing_of_the_dashboard() -> ImportError | None:
    """What Ray's function of another name finds out by importing all of it, which takes a quarter
    of a second at the start of a node."""
    for name in _DASHBOARD_PACKAGES:
        if importlib.util.find_spec(name) is None:
            return ImportError(f"No module named '{name}'", name=name)
    return None


def dashboard_address(ended: threading.Event) -> str | None:
    """Waits for the dashboard that was started; 'host:port', or None if it does not start.

    Missing: `ray.init()` waits for it itself, or starts none.

    Args:
        ended: nobody waits for it any more; None is returned then, too.
    """
    from ray._private import ray_constants, worker
    from ray.exceptions import RpcError

    node: Any = worker._global_node
    processes = node.all_processes.get(ray_constants.PROCESS_TYPE_DASHBOARD)
    space = ray_constants.KV_NAMESPACE_DASHBOARD
    with contextlib.suppress(RpcError):  # the cluster has ended
        while processes and processes[0].process.poll() is None and not ended.wait(_POLL_S):
            store = node.get_gcs_client()
            address = store.internal_kv_get(ray_constants.DASHBOARD_ADDRESS.encode(), space)
            if address is not None:
                store.internal_kv_put(b"webui:url", address, True, space)  # others look there
                return address.decode()
    return None


@contextlib.contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Where this process handles SIGTERM already, it does so after the block too.

    `ray.init()` sets a handler that would end the process in the middle of starting, with an exit
    code of its own. `ray.shutdown()` leaves the process without one, though Python still names its
    own. Missing: an option of `ray.init()`.
    """
    from ray._private import utils

    own = signal.getsignal(signal.SIGTERM)
    if own in (signal.SIG_DFL, None):
        yield  # then Ray's handler is what ends its processes
        return
    try:
        with _replaced(utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)  # Ray's C++ has taken it


def shut_down_beside() -> threading.Thread:
    """`ray.shutdown()` whose longest part, the end of Ray's processes, is left to a thread.

    To be called in the main thread: `ray.shutdown()` takes the handler of SIGTERM away, only the
    main thread can set one, and until it does, SIGTERM ends the process. So this thread leaves the
    cluster, which takes some milliseconds, and sets its handler anew.

    Missing: an option of `ray.shutdown()`; with `wait_for_processes=False` it waits too.

    Returns:
        The thread, started.
    """
    import ray
    from ray._private.node import Node

    end_processes = Node.kill_all_processes
    work: list[Callable[[], None]] = []

    def leave_it(node: Node, *args: Any, **options: Any) -> None:
        work.append(functools.partial(end_processes, node, *args, **options))

    with own_sigterm_handler(), _replaced(Node, "kill_all_processes", leave_it):
        ray.shutdown()
    thread = threading.Thread(target=lambda: [end() for end in work], name="ray-shutdown")
    thread.start()
    return thread


def cpus_that_ray_sees() -> int:
    """How many CPUs `ray.init()` would offer: the machine's, or a container's quota.

    Missing: a public way to ask before Ray is started.
    """
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True))


def keep_replicas_on_loopback() -> None:
    """Keeps a replica's second port off the network; to be called in the replica's constructor.

    Behind its constructor, every replica opens a gRPC port for calls from other deployments: on all
    interfaces, without a token, and what it is sent is unpickled. Missing: an address for it.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(
        server, address.replace("[::]", "127.0.0.1")
    )


@contextlib.contextmanager
def control_service(address: str) -> Iterator[tuple[Any, Any]]:
    """The client of a cluster's control service (GCS), and the messages that it takes.

    Missing: a public call with a time limit that tells whether there is a cluster. `ray.init()`
    tries for 20 to 30 s, whatever answers, and says little of why it gives up.

    Args:
        address: 'host:port'.
    """
    from ray._private.grpc_utils import init_grpc_channel  # knows Ray's settings of TLS and token
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    # A cluster is in our own network; a proxy for the world outside it would answer in its place.
    channel: Any = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    with channel:
        yield gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel), gcs_service_pb2


def node_ids_here() -> set[str]:
    """The ids of the nodes whose raylets run on this machine; found among its processes.

    Missing: a public way before `ray.init()`, which waits 30 s for a node of the cluster here.
    """
    from ray._private.services import find_node_ids

    return set(find_node_ids())


def trial_without_values(spec: dict[str, Any], parser: Any, identity: str) -> Any:
    """A Tune `Trial` whose config is empty, whatever the search space.

    Missing: a public way for a searcher to make a trial that it did not draw from the space.

    Args:
        spec: the experiment's.
        parser: the searcher's, of a trial's resources and stopping rules.
        identity: the trial's id.
    """
    from ray.tune.experiment.config_parser import _create_trial_from_spec

    return _create_trial_from_spec(
        spec | {"config": {}},
        parser,
        evaluated_params={},
        experiment_tag="1",
        trial_id=identity,
    )


def deprecated_default() -> Any:
    """RLlib's default for an argument that has become ineffective. Missing: a public name."""
    from ray._common.deprecation import DEPRECATED_VALUE

    return DEPRECATED_VALUE


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """`holder.name` is the value in the block."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
