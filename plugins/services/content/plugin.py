"""Registers the content service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.content.service import ContentService

    yield ContentService(ctx.one(METADATA).content)


plugin = Registration(
    kind=GRPC,
    id="content",
    open=open_,
    requires=(METADATA,),
    essential=True,
    summary="lets clients read, write and label blobs",
)
