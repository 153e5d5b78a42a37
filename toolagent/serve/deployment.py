"""The playground as a Ray Serve application, and how it is started and ended on this machine."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolagent.checkpoints.policy import Policy
from toolagent.cluster.ray_session import quiet
from toolagent.errors import UserError
from toolagent.installation import install_command
from toolagent.serve.agents import Agents, load_agents, named, place_of

APPLICATION = "playground"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_ONGOING_REQUESTS = 1000  # per replica; beyond it Serve lets requests wait


def application(arguments: Mapping[str, Any]) -> Any:
    """Builds the application; Serve's config files (`cluster/kubernetes/rayservice.yaml`) name it.

    Args:
        arguments: `checkpoints`, paths that the replicas can read, 'NAME=PATH' or paths by name;
            `task` and `network`, where they are of modules of your own, which the replicas can
            import; `hosts`, the names to be called by besides those of loopback; `num_replicas`, 1
            by default; `num_cpus` of a replica, 0 by default; `one_machine`: keep all of its ports
            on loopback.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    # No log line per request: counts and times are in `/metrics`.
    logged = LoggingConfig(enable_access_log=False, log_level="WARNING")

    @serve.deployment(
        name=APPLICATION,
        num_replicas=arguments.get("num_replicas", 1),
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        logging_config=logged,
        ray_actor_options={"num_cpus": arguments.get("num_cpus", 0)},
    )
    @serve.ingress()
    class Playground:
        """A replica: the agents in its memory, and the ASGI application around them."""

        def __init__(
            self,
            checkpoints: Mapping[str, str],
            task: str | None,
            network: str | None,
            hosts: Sequence[str],
            one_machine: bool,
        ):
            import torch

            from toolagent.cluster.ray_internals import keep_replicas_on_loopback

            if one_machine:
                keep_replicas_on_loopback()
            torch.set_num_threads(1)  # networks this small gain nothing from more
            quiet()
            self._agents, self._hosts = Agents(load_agents(checkpoints, task, network)), hosts
            gc.collect()
            gc.freeze()  # what is there now stays; it need not be looked through again and again

        def __serve_build_asgi_app__(self) -> Any:
            from toolagent.serve.app import build_app

            return build_app(self._agents, self._hosts)

    hosts = [*LOOPBACK, *arguments.get("hosts", ())]
    folders = named(arguments["checkpoints"])
    code = (arguments.get("task"), arguments.get("network"))
    return Playground.bind(folders, *code, hosts, arguments.get("one_machine", False))


def require_serve() -> None:
    """Refuses to go on without Ray Serve, and says how to install it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the playground needs Ray Serve ({error.name} is missing): {install_command('serve')}"
        ) from None


def check_names(host: str, names: Sequence[str]) -> None:
    """Refuses names that are not server names; an empty host would mean all interfaces.

    Raises:
        UserError: with the flag.
    """
    if not host.strip():
        raise UserError("--host: is empty; name an address, 0.0.0.0 for all interfaces")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", name):
            raise UserError(
                f"--allow-host '{name}': is no name of a server; expected one such as "
                "example.org, without a scheme, a port or a path"
            )


def check_port(host: str, port: int) -> None:
    """Refuses an address on which a server can't listen.

    Raises:
        UserError: the port is taken or not permitted, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise UserError(
            f"{host}:{port} can't be listened at ({error.strerror or error}); "
            "choose another --port, or --host"
        ) from None


def prepare(port: int) -> None:
    """Sets how Serve's processes work; to be called before Ray is imported.

    *Direct ingress*: the replica listens itself, without a proxy process in front of it; a request
    is then handled in one process instead of two. Measured, see README.
    """
    for name, value in {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),  # not included
        "RAY_SERVE_DIRECT_INGRESS_PORT_RETRY_COUNT": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # a replica that died is replaced at the same port
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "toolagent.serve.guard:outermost",
        # The agent plays in the loop that takes requests in: no hop to another thread and back.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Ray's workers give way to everything else on the machine; people wait for this one.
        "RAY_worker_niceness": "0",
        # On a busy machine Serve's own 5 s are not enough, and it begins again and again.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    }.items():
        os.environ[name] = value
    os.environ.pop("RAY_ADDRESS", None)  # the cluster is this command's own


@contextlib.contextmanager
def serving(
    policies: Mapping[str, Policy],
    host: str,
    hosts: Sequence[str],
    task: str | None = None,
    network: str | None = None,
) -> Iterator[None]:
    """Serves the playground while the context is open; inside a `ray_session`.

    Args:
        policies: the served agents by name; the replica reads their folders again.
        host: where it listens, at the port that `prepare` was told.
        hosts: further accepted names of the `Host` header.
        task: of another module, as the user named it.
        network: the same.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    if os.environ.get("TOOLAGENT_VERBOSE") != "1":
        # Serve sets its logger's level itself, so the level is no way to keep it quiet.
        logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.CRITICAL)
    serve.start(
        # Serve starts a proxy beside the replica, which is not used.
        http_options={"host": host, "port": free_port(host)},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    folders = {name: place_of(policy) for name, policy in policies.items()}
    arguments = {"checkpoints": folders, "hosts": [host, *hosts], "one_machine": True}
    arguments |= {"task": task, "network": network}
    serve.run(application(arguments), name=APPLICATION, route_prefix="/")
    try:
        yield
    finally:
        # What is under way is answered. Everything else of Serve's ends with the Ray session.
        serve.delete(APPLICATION)


def free_port(host: str) -> int:
    """A port that is free at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind((host, 0))
        return found.getsockname()[1]
