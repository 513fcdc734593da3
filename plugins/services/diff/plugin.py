"""Registers the diff service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.introspection import SERVICE
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.diff.service import DiffService

    yield DiffService(ctx.named(SERVICE, "diff-service"))


plugin = Registration(
    kind=GRPC,
    id="diff",
    open=open_,
    requires=(SERVICE,),
    essential=True,
    summary="serves the unpacking and making of layers",
)
