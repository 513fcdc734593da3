"""Registers the namespaces service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.namespaces.service import NamespacesService

    yield NamespacesService(ctx.one(METADATA).namespaces)


plugin = Registration(
    kind=GRPC,
    id="namespaces",
    open=open_,
    requires=(METADATA,),
    essential=True,
    summary="lets clients list, make, label and remove namespaces",
)
