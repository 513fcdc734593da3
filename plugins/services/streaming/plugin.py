"""Registers the streaming service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcService
from moored.kernel.ports.streaming import STREAMING


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.streaming.service import StreamingService

    yield StreamingService(ctx.named(STREAMING, "manager"))


plugin = Registration(
    kind=GRPC,
    id="streaming",
    open=open_,
    requires=(STREAMING,),
    essential=True,
    summary="lets clients open streams that other calls then name",
)
