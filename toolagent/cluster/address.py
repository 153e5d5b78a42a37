"""Is there a Ray cluster at an address, and will it take us? Asked before Ray itself is.

Ray's own client tries for 20 to 30 s, whatever answers, and says little of why it gives up. One
call to the cluster's control service (GCS), with a deadline, tells the cases apart.
"""

from __future__ import annotations

import os
import re
from typing import Any

from toolagent.cluster.token import token_is_sent
from toolagent.errors import UserError

ANSWERS_WITHIN_S = 5.0


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


def no_cluster(address: str, reason: str) -> UserError:
    """What is said where there is no cluster to join."""
    return UserError(f"--address {address}: no Ray cluster answers there ({reason}); is it up?")


def _ask(address: str) -> Any:
    """The nodes of the cluster there (`GetAllNodeInfoReply`)."""
    import grpc
    import ray

    from toolagent.cluster.ray_internals import control_service

    with control_service(address) as (service, messages):
        limit = ANSWERS_WITHIN_S
        try:
            version = service.CheckAlive(messages.CheckAliveRequest(), timeout=limit).ray_version
            nodes = service.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=limit)
        except grpc.RpcError as error:
            raise _refused(address, error) from None
    if version != ray.__version__:
        raise UserError(
            f"--address {address}: that cluster runs Ray {version}, this machine has "
            f"{ray.__version__}; install ray=={version} here"
        )
    return nodes


def _refused(address: str, error: Any) -> UserError:
    """What an error of gRPC means."""
    import grpc

    code = error.code()
    if code == grpc.StatusCode.UNAUTHENTICATED:
        file = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
        if not token_is_sent():
            # Not sent unasked: to whom it is shown should be the user's choice.
            return UserError(
                f"--address {address}: the cluster asks for a token; set RAY_AUTH_MODE=token, "
                f"with its token in {file}"
            )
        source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else file
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
        ("HTTP/2|Socket closed|Connection reset", "something else does"),
        ("resolv|lookup|DNS", "no such host"),
        ("No route", "no route to host"),
        ("unreachable", "network unreachable"),
    ):
        if re.search(sign, text):
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
