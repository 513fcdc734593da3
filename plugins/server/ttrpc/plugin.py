"""Registers the ttrpc listener: a unix socket beside the gRPC one, for shims."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.server import SERVER, Listener
from moored.kernel.ports.services import GRPC, TTRPC


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.server.v1.ttrpc"]"""

    address: str = setting(
        "/run/moored/moored.sock.ttrpc",
        doc="path of the unix socket, empty for none; where only the gRPC address is set, that with .ttrpc added",
    )
    uid: int = setting(factory=os.geteuid, ge=0, doc="owner of the socket; default the daemon's user")
    gid: int = setting(factory=os.getegid, ge=0, doc="group of the socket; default the daemon's group")


@dataclass(frozen=True, slots=True)
class TtrpcListener:
    """The Listener of the ttrpc socket."""

    address: str


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Listener]:
    """Serve all started ttrpc services to processes of the daemon's own user and group."""
    config = ctx.config
    if not config.address:
        raise Skip("no address configured")
    from moored.api.errors import to_status
    from moored.api.ttrpc.server import Server, Services
    from moored.plugins.server.ttrpc.bound import Registrar
    from moored.plugins.server.unixsocket import claim

    services = Services()
    for id_, service in sorted(ctx.all(TTRPC).items()):
        try:
            service.register(Registrar(services))
        except Exception:
            # One service must not take the listener, and with it all others, away.
            ctx.log.exception("service cannot be registered", service=f"{TTRPC.uri}.{id_}")
    with claim(config.address, config.uid, config.gid) as place:
        server = Server(services, error_to_status=to_status, require_same_user=True)
        try:
            await server.serve(place.bound())
            place.publish()
            ctx.facts.exports["address"] = config.address
            yield TtrpcListener(config.address)
        finally:
            await server.stop(GRACE)


GRACE = 1.0
"""Seconds that running calls get to end by themselves when the listener stops."""

plugin = Registration(
    kind=SERVER,
    id="ttrpc",
    config=Config,
    open=open_,
    after=(TTRPC, GRPC),
    summary="serves every ttrpc service on a unix socket",
)
