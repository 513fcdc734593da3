"""Registers the daemon service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.daemon.service import DaemonService

    yield DaemonService(ctx.daemon)


plugin = Registration(
    kind=GRPC, id="daemon", open=open_, essential=True, summary="shows plugins and config with reasons, for moorctl"
)
