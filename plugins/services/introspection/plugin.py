"""Registers the introspection service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.introspection import SERVICE
from moored.kernel.ports.services import GRPC, GrpcService
from moored.kernel.ports.tasks import RUNTIME


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.introspection.service import IntrospectionService

    yield IntrospectionService(ctx.named(SERVICE, "introspection-service"), ctx.all(RUNTIME))


plugin = Registration(
    kind=GRPC,
    id="introspection",
    open=open_,
    requires=(SERVICE,),
    after=(RUNTIME,),
    essential=True,
    summary="tells clients which plugins there are and who the daemon is",
)
