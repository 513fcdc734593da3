"""Registers the mounts service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.mounts import MOUNT_MANAGER
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.mounts.service import MountsService

    yield MountsService(ctx.one(MOUNT_MANAGER))


plugin = Registration(
    kind=GRPC,
    id="mounts",
    open=open_,
    requires=(MOUNT_MANAGER,),
    essential=True,
    summary="lets clients have mounts carried out that they cannot make themselves",
)
