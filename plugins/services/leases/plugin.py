"""Registers the leases service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.leases import LEASES
from moored.kernel.ports.objects import GC
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.leases.service import LeasesService

    yield LeasesService(ctx.named(LEASES, "manager"), ctx.one(GC) if ctx.all(GC) else None)


plugin = Registration(
    kind=GRPC,
    id="leases",
    open=open_,
    requires=(LEASES,),
    after=(GC,),
    essential=True,
    summary="lets clients hold what nothing else refers to yet",
)
