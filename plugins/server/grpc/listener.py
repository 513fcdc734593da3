"""A gRPC server for as long as its plugin runs: on a unix socket, or on TCP with or without TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import urllib.parse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.plugin import InitContext
from moored.kernel.ports.metrics import METRICS
from moored.kernel.ports.services import GRPC
from moored.plugins.server.grpc.calls import Calls
from moored.plugins.server.unixsocket import claim

GRACE = 1.0
"""Seconds that running calls get to end by themselves when the listener stops; subscriptions never do."""
CUT = 1.0
"""Seconds that handlers get to react to being cancelled after that."""
MAX_STREAMS = 65536
"""Calls at once on one connection. High, because an engine holds one waiting call for each of its containers."""


@dataclass(frozen=True, slots=True)
class GrpcListener:
    """The Listener of a gRPC server."""

    address: str


def new_calls(ctx: InitContext[Any], *, max_send: int, common_name: str = "") -> Calls:
    """All started services, ready to be served, under all started observers; one that cannot be is left out."""
    calls = Calls(
        observers=list(ctx.all(METRICS).values()),
        hooks=ctx.hooks,
        log=ctx.log,
        max_send=max_send,
        common_name=common_name,
    )
    for id_, service in sorted(ctx.all(GRPC).items()):
        owner = f"{GRPC.uri}.{id_}"
        try:
            service.register(calls.registrar(owner))
        except Exception:
            # One service must not take the listener, and with it all others, away.
            ctx.log.exception("service cannot be registered", service=owner)
    return calls


@asynccontextmanager
async def on_unix(calls: Calls, address: str, *, uid: int, gid: int, max_receive: int) -> AsyncGenerator[GrpcListener]:
    """Serve on a unix socket. Raises what `unixsocket.claim` raises."""
    with claim(address, uid, gid) as place:
        server = _server(calls, max_receive)
        _bind(server, f"unix:{urllib.parse.quote(str(place.bind_path))}", address, None)
        async with _running(server, calls):
            place.publish()
            yield GrpcListener(address)


@asynccontextmanager
async def on_tcp(
    calls: Calls, address: str, *, credentials: grpc.ServerCredentials | None, max_receive: int
) -> AsyncGenerator[GrpcListener]:
    """Serve on HOST:PORT; port 0 takes a free one. Raises InvalidArgument, FailedPrecondition.

    Without credentials only loopback addresses are possible: who may call this API is root on its host.
    """
    host, port = split_address(address)
    if credentials is None and not is_loopback(host):
        raise FailedPrecondition(f"address {address!r} is open to other hosts and needs tls_cert and tls_key")
    shown = f"[{host}]" if ":" in host else host
    server = _server(calls, max_receive)
    real = _bind(server, f"{shown or '[::]'}:{port}", address, credentials)
    async with _running(server, calls):
        yield GrpcListener(f"{shown}:{real}")


def split_address(address: str) -> tuple[str, int]:
    """The host (without brackets, "" for every one) and port of HOST:PORT. Raises InvalidArgument."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not bracketed):
        raise InvalidArgument(f"address {address!r} must look like '127.0.0.1:7700' or '[::1]:7700'")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this host reaches the address; a name other than localhost counts as reachable from elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _server(calls: Calls, max_receive: int) -> grpc.aio.Server:
    options = [
        ("grpc.max_receive_message_length", max_receive),
        ("grpc.max_send_message_length", -1),  # Calls checks it, with Go's text
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.so_reuseport", 0),
        # Go clients ping as often as they like, also while no call is open, and must not be sent away for it.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    return grpc.aio.server(handlers=(calls,), options=options)


def _bind(server: grpc.aio.Server, target: str, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(target)
        return server.add_secure_port(target, credentials)
    except RuntimeError as error:
        # The library keeps the reason to itself.
        raise FailedPrecondition(f"cannot listen on {address!r}: {_why(target) or error}") from error


def _why(target: str) -> str:
    if target.startswith("unix:"):
        return ""
    host, port = split_address(target)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return ""


@asynccontextmanager
async def _running(server: grpc.aio.Server, calls: Calls) -> AsyncGenerator[None]:
    """Started inside; in the end calls get GRACE, then are cancelled and their handlers get CUT to notice."""
    await server.start()
    try:
        yield
    finally:
        await server.stop(GRACE)
        if calls.running:
            await asyncio.wait(tuple(calls.running), timeout=CUT)
