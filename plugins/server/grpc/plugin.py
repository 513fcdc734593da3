"""Registers the gRPC listeners: on a unix socket, and on TCP."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.errors import InvalidArgument
from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.metrics import METRICS
from moored.kernel.ports.server import SERVER, Listener
from moored.kernel.ports.services import GRPC

MAX_MESSAGE = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.server.v1.grpc"]"""

    address: str = setting("/run/moored/moored.sock", doc="path of the unix socket; empty switches the listener off")
    uid: int = setting(factory=os.geteuid, ge=0, doc="owner of the socket; default the daemon's user")
    gid: int = setting(factory=os.getegid, ge=0, doc="group of the socket; default the daemon's group")
    max_recv_message_size: int = setting(MAX_MESSAGE, ge=0, doc="longest message taken from a client, bytes; 0: 16 MiB")
    max_send_message_size: int = setting(MAX_MESSAGE, ge=0, doc="longest message sent to a client, bytes; 0: 16 MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpConfig:
    """[plugins."io.containerd.server.v1.grpc-tcp"]"""

    address: str = setting("", doc="HOST:PORT; empty switches the listener off, port 0 takes a free one")
    tls_ca: str = setting("", doc="PEM file; clients must show a certificate signed by one of these authorities")
    tls_cert: str = setting("", doc="PEM file with the listener's certificate; without it only loopback is served")
    tls_key: str = setting("", doc="PEM file with the private key of tls_cert")
    tls_common_name: str = setting("", doc="common name that the client's certificate must have; needs tls_ca")
    max_recv_message_size: int = setting(MAX_MESSAGE, ge=0, doc="longest message taken from a client, bytes; 0: 16 MiB")
    max_send_message_size: int = setting(MAX_MESSAGE, ge=0, doc="longest message sent to a client, bytes; 0: 16 MiB")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Listener]:
    """Serve all gRPC services on the unix socket."""
    config = ctx.config
    if not config.address:
        raise Skip("no address configured")
    from moored.plugins.server.grpc.listener import new_calls, on_unix

    receive, send = config.max_recv_message_size or MAX_MESSAGE, config.max_send_message_size or MAX_MESSAGE
    calls = new_calls(ctx, max_receive=receive, max_send=send)
    async with on_unix(calls, config.address, uid=config.uid, gid=config.gid) as listener:
        ctx.facts.exports["address"] = listener.address
        yield listener


@asynccontextmanager
async def open_tcp(ctx: InitContext[TcpConfig]) -> AsyncGenerator[Listener]:
    """Serve all gRPC services on TCP."""
    config = ctx.config
    if not config.address:
        raise Skip("no address configured")
    if config.tls_common_name and not config.tls_ca:
        raise InvalidArgument("tls_common_name is set and needs tls_ca, or no client shows a certificate")
    from moored.plugins.server.grpc.listener import new_calls, on_tcp
    from moored.plugins.server.grpc.tls import server_tls

    tls = server_tls(config.tls_cert, config.tls_key, config.tls_ca)
    receive, send = config.max_recv_message_size or MAX_MESSAGE, config.max_send_message_size or MAX_MESSAGE
    calls = new_calls(ctx, max_receive=receive, max_send=send, common_name=config.tls_common_name)
    async with on_tcp(calls, config.address, tls=tls) as listener:
        ctx.facts.exports["address"] = listener.address
        yield listener


plugin = Registration(
    kind=SERVER,
    id="grpc",
    config=Config,
    open=open_,
    requires=(GRPC,),
    after=(METRICS,),
    essential=True,
    summary="serves every gRPC service on a unix socket",
)

tcp = Registration(
    kind=SERVER,
    id="grpc-tcp",
    config=TcpConfig,
    open=open_tcp,
    requires=(GRPC,),
    after=(METRICS,),
    summary="serves every gRPC service on TCP, with TLS or for this host only",
)
