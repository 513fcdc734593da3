"""Registers the images service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import GC, METADATA
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.images.service import ImagesService

    yield ImagesService(ctx.one(METADATA).images, ctx.one(GC) if ctx.all(GC) else None)


plugin = Registration(
    kind=GRPC,
    id="images",
    open=open_,
    requires=(METADATA,),
    after=(GC,),
    essential=True,
    summary="lets clients list, name and remove images",
)
