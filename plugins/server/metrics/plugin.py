"""Registers the metrics listener: Prometheus fetches `/v1/metrics` from it over HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.http import Page
from moored.kernel.ports.metrics import METRICS_EXPORTER, MetricsExporter
from moored.kernel.ports.server import SERVER, Listener

PATH = "/v1/metrics"
EXPORTER = "prometheus"
"""Id of the exporter whose exposition is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.server.v1.metrics"]"""

    address: str = setting("", doc="HOST:PORT; empty switches the listener off, port 0 takes a free one")


@dataclass(frozen=True, slots=True)
class MetricsListener:
    """The Listener of the metrics endpoint."""

    address: str


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Listener]:
    """Serve what the exporter shows, to anybody who reaches the address."""
    if not ctx.config.address:
        raise Skip("no address configured")
    from moored.plugins.server.pages import serving

    exporter = ctx.named(METRICS_EXPORTER, EXPORTER)

    async def metrics(_query: Mapping[str, str], headers: Mapping[str, str]) -> Page:
        return await _scrape(exporter, headers.get("Accept", ""))

    sock = await _bound(ctx.config.address)
    async with serving({PATH: metrics}, sock, ctx.log):
        address = _shown(sock)
        ctx.facts.exports["address"] = address
        yield MetricsListener(address)


async def _scrape(exporter: MetricsExporter, accept: str) -> Page:
    kind, body = await asyncio.to_thread(exporter.render, accept)
    return Page(200, kind, body)


async def _bound(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"address {address!r} must look like '127.0.0.1:1338'")
    host = host.removeprefix("[").removesuffix("]")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise FailedPrecondition(f"cannot listen on {address!r}: {_reason(error)}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise FailedPrecondition(f"cannot listen on {address!r}: {_reason(error)}") from error
    return sock


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


plugin = Registration(
    kind=SERVER,
    id="metrics",
    config=Config,
    open=open_,
    requires=(METRICS_EXPORTER,),
    summary="serves metrics to Prometheus over HTTP",
)
