"""Registers the snapshots service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.snapshots.service import SnapshotsService

    yield SnapshotsService(ctx.one(METADATA))


plugin = Registration(
    kind=GRPC,
    id="snapshots",
    open=open_,
    requires=(METADATA,),
    essential=True,
    summary="serves the snapshots of all snapshotters",
)
