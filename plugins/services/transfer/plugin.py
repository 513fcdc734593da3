"""Registers the transfer service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcService
from moored.kernel.ports.streaming import STREAMING
from moored.kernel.ports.transfer import TRANSFER


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.transfer.service import TransferService

    transferrers = [one for _, one in sorted(ctx.all(TRANSFER).items())]
    yield TransferService(transferrers, ctx.named(STREAMING, "manager"), ctx.log)


plugin = Registration(
    kind=GRPC,
    id="transfer",
    open=open_,
    requires=(TRANSFER, STREAMING),
    essential=True,
    summary="lets clients have images pulled, pushed, imported, exported and tagged",
)
