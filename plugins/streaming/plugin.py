"""Registers the stream manager."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.streaming import STREAMING, StreamManager


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[StreamManager]:
    """Keep streams until the end, and close what is left then."""
    from moored.plugins.streaming.manager import LeasedStreams

    objects = ctx.one(METADATA)
    async with LeasedStreams(objects.leases) as manager:
        end = objects.on_change(manager.changed)
        try:
            yield manager
        finally:
            end()


plugin = Registration(
    kind=STREAMING,
    id="manager",
    open=open_,
    requires=(METADATA,),
    summary="keeps the streams that clients open for transfers",
)
