"""Registers the events services."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.services import GRPC, TTRPC, GrpcService, TtrpcService


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.events.service import EventsService

    yield EventsService(ctx.named(EVENT, "exchange"))


@asynccontextmanager
async def open_ttrpc(ctx: InitContext[None]) -> AsyncGenerator[TtrpcService]:
    """Serve it on the ttrpc listener."""
    from moored.plugins.services.events.service import TtrpcEventsService

    yield TtrpcEventsService(ctx.named(EVENT, "exchange"))


plugin = Registration(
    kind=GRPC,
    id="events",
    open=open_,
    requires=(EVENT,),
    essential=True,
    summary="lets clients publish events and subscribe to them",
)

ttrpc = Registration(
    kind=TTRPC,
    id="events",
    open=open_ttrpc,
    requires=(EVENT,),
    essential=True,
    summary="takes the events of shims",
)
