"""Is there a Ray cluster at an address, and will it take us? Asked before Ray itself is.

Ray's own client tries for 20 to 30 s, whatever answers, and says little of why it gives up. One
call to the cluster's control service (GCS), with a deadline, tells the cases apart.
"""

from __future__ import annotations

import os
from typing import Any

from toolagent.errors import UserError

ANSWERS_WITHIN_S = 5.0
_TOKEN_VARIABLE, _MODE_VARIABLE = "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"


def check_address(address: str) -> None:
    """Refuses an address that can't be joined. Imports Ray, and starts nothing.

    Args:
        address: as `--address` takes it: 'host:port'. Whatever has no port ('auto') is left to
            Ray, which answers it at once.

    Raises:
        UserError: nobody answers there, something answers that is no Ray cluster, it refuses the
            token, runs another version of Ray, or this machine is none of its nodes.
    """
    scheme, separator, _ = address.partition("://")
    if separator and scheme in ("http", "https"):
        raise UserError(
            f"--address {address}: is a dashboard, to which jobs are submitted (ray job submit "
            f"--address {address}); to join the cluster name HOST:6379"
        )
    if separator:
        raise UserError(
            f"--address {address}: expected HOST:PORT; from outside the cluster, submit a job "
            "(cluster/submit.sh)"
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) <= 65535:
        raise no_cluster(address, "expected HOST:PORT")
    _check_nodes(address, _ask(address))


def cluster_to_join(address: str | None) -> str | None:
    """The address of a cluster; None where one is to be started here, as 'local' says too.

    Raises:
        UserError: it is empty, as an unset variable of a shell is.
    """
    if address is not None and not address.strip():
        raise UserError("--address: is empty; name HOST:PORT, or leave it out to start a cluster")
    return None if address == "local" else address


def no_cluster(address: str, reason: str) -> UserError:
    """What is said where there is no cluster to join."""
    return UserError(f"--address {address}: no Ray cluster answers there ({reason}); is it up?")


def _ask(address: str) -> Any:
    """The nodes of the cluster there (`GetAllNodeInfoReply`)."""
    import grpc
    import ray

    from toolagent.cluster.ray_internals import control_service

    _check_token(address)
    with control_service(address) as (service, messages):
        limit = ANSWERS_WITHIN_S
        try:
            alive = service.CheckAlive(messages.CheckAliveRequest(), timeout=limit)
            version = alive.ray_version
            request = messages.GetAllNodeInfoRequest()
            nodes = service.GetAllNodeInfo(request, timeout=limit)
        except grpc.RpcError as error:
            raise _refused(address, error) from None
    if version != ray.__version__:
        raise UserError(
            f"--address {address}: that cluster runs Ray {version}, this machine has "
            f"{ray.__version__}; install ray=={version} here"
        )
    return nodes


def _check_token(address: str) -> None:
    """Where a token is to be sent (`RAY_AUTH_MODE=token`) there has to be one."""
    if os.environ.get(_MODE_VARIABLE, "").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.path.isfile(os.path.expanduser(_token_file())):
        return  # whether it is one was looked at before (`token.prepare_token`)
    raise UserError(
        f"--address {address}: {_MODE_VARIABLE}=token, but there is no token in {_token_file()}; "
        "put the cluster's token there, with mode 0600"
    )


def _token_file() -> str:
    return os.environ.get(_TOKEN_VARIABLE, "~/.ray/auth_token")


def _refused(address: str, error: Any) -> UserError:
    """What an error of gRPC means."""
    import grpc

    code = error.code()
    if code == grpc.StatusCode.UNAUTHENTICATED:
        if os.environ.get(_MODE_VARIABLE, "").lower() != "token":
            # Not sent unasked: to whom it is shown should be the user's choice.
            return UserError(
                f"--address {address}: the cluster asks for a token; set {_MODE_VARIABLE}=token, "
                f"with its token in {_token_file()}"
            )
        source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else _token_file()
        return UserError(
            f"--address {address}: the cluster refuses the token in {source}; "
            "fetch the one that its head has"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return no_cluster(address, f"no answer within {ANSWERS_WITHIN_S:g} s")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return no_cluster(address, "something else does")
    text = str(error.details())
    for sign, reason in (
        ("Connection refused", "connection refused"),
        ("HTTP/2", "something else does"),
        ("Socket closed", "something else does"),
        ("Connection reset", "something else does"),
        ("resolv", "no such host"),
        ("lookup", "no such host"),
        ("DNS", "no such host"),
        ("No route", "no route to host"),
        ("unreachable", "network unreachable"),
    ):
        if sign in text:
            return no_cluster(address, reason)
    return no_cluster(address, text.rpartition("last error: ")[2][:200])


def _check_nodes(address: str, reply: Any) -> None:
    """A driver needs a raylet of the cluster on its machine; Ray would look for one for 30 s."""
    from toolagent.cluster.ray_internals import node_ids_here

    alive = {node.node_id.hex() for node in reply.node_info_list if node.state == 0}
    if not alive:
        raise no_cluster(address, "none of its nodes is alive")
    if not alive & node_ids_here():
        raise UserError(
            f"--address {address}: this machine is none of that cluster's {len(alive)} nodes; "
            f"start Ray here (ray start --address={address}), or submit a job "
            "(cluster/submit.sh)"
        )
