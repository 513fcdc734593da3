"""Registers the containers service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.containers.service import ContainersService

    yield ContainersService(ctx.one(METADATA).containers)


plugin = Registration(
    kind=GRPC,
    id="containers",
    open=open_,
    requires=(METADATA,),
    essential=True,
    summary="lets clients list, make, change and remove the records of containers",
)
