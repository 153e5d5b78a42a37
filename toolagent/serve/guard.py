"""Checks on every request (its `Host` header and its size), and headers on every answer."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolagent.serve.figures import Figures
from toolagent.serve.schemas import MAX_BODY_BYTES

# Everything comes from this server, nothing is framed, and no text ever becomes a script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


# An answer takes milliseconds: no task is started to watch whether the client goes meanwhile.
_WATCH_NOBODY = (b"x-request-disconnect-disabled", b"?1")
# Headers with which a client could steer Ray Serve; one that is no UTF-8 makes it answer 500.
_RAYS_OWN = (b"x-request-", b"x-serve-", b"x-session-id", b"serve_", b"serve-")


class WithoutRaysHeaders:
    """Around Ray Serve's own handling of a request, which begins before the application's."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if "headers" in scope:
            kept = [entry for entry in scope["headers"] if not entry[0].startswith(_RAYS_OWN)]
            scope = {**scope, "headers": [*kept, _WATCH_NOBODY]}
        await self._app(scope, receive, send)


def outermost() -> list[Middleware]:
    """What Ray Serve puts around every request; it is told by the variable in `prepare`."""
    return [Middleware(WithoutRaysHeaders)]


class Guard:
    """Refuses requests before they reach a route, and adds the security headers.

    - A `Host` of another name: a foreign page whose name resolves to this address ("DNS
      rebinding") would otherwise have the same origin as this server.
    - A body of more than `MAX_BODY_BYTES`, also without a Content-Length.
    - WebSockets, which are not used.

    Args:
        app: the application behind it.
        hosts: the accepted names; the local address of the connection is always accepted.
        figures: where requests are counted.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], figures: Figures):
        self._app, self._figures = app, figures
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        started, status = time.perf_counter(), 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_ALWAYS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            body = await _whole_body(scope, receive)
            if body is None:
                refusal = (413, f"the request's body is larger than {MAX_BODY_BYTES:,} bytes")
            else:
                receive = _replay(body, receive)
        if refusal is None:
            await self._app(scope, receive, send_safely)
        else:
            await _refuse(send_safely, *refusal)
        self._figures.count(scope["path"], status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        names = [value for name, value in scope["headers"] if name == b"host"]
        host = host_of(names[0].decode("latin-1")) if len(names) == 1 else None
        here = scope.get("server") or (None,)
        if host is None or (host not in self._hosts and host != here[0]):
            known = ", ".join(sorted(self._hosts))
            return 400, f"the Host header names another server; this one is called {known}"
        return None


def host_of(header: str) -> str | None:
    """The name in a Host header, without its port; None if the header is malformed.

    host_of("[::1]:8000") == "::1"
    """
    name, bracket, rest = header.strip().lower().partition("]")
    if bracket:
        name = name.removeprefix("[")
        try:
            ipaddress.IPv6Address(name)
        except ValueError:
            return None
    else:
        name, colon, rest = header.strip().lower().partition(":")
        rest = colon + rest
    if rest and not (
        rest.startswith(":") and ((rest[1:].isascii() and rest[1:].isdecimal()) or rest == ":")
    ):
        return None
    return name or None


async def _whole_body(scope: Scope, receive: Receive) -> bytes | None:
    """The request's body; None if it is too large, and then not read to its end."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        return None
    if length in (None, b"0") and b"transfer-encoding" not in headers:
        return b""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""  # the client has disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body in one piece, and then waits for the disconnect."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = b'{"detail":"' + detail.encode() + b'"}'
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
