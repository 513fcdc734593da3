"""Registers the standard gRPC health service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener; what plugins come to is learnt from the hook."""
    from moored.plugins.services.healthcheck.service import HealthService

    service = HealthService(ctx.daemon)
    ctx.hooks.register(service)
    yield service


plugin = Registration(
    kind=GRPC, id="healthcheck", open=open_, essential=True, summary="answers whether the daemon and its parts are well"
)
