"""Registers the version service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.version.service import VersionService

    yield VersionService(ctx.daemon)


plugin = Registration(kind=GRPC, id="version", open=open_, essential=True, summary="tells the daemon's version")
