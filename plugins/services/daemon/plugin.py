"""Registers the daemon service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.databases import DATABASES, Backups
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.daemon.service import DaemonService

    backups = next((opener for opener in ctx.all(DATABASES).values() if isinstance(opener, Backups)), None)
    yield DaemonService(ctx.daemon, backups)


plugin = Registration(
    kind=GRPC,
    id="daemon",
    open=open_,
    after=(DATABASES,),
    essential=True,
    summary="shows plugins and config with reasons, and copies the metadata, for moorctl",
)
