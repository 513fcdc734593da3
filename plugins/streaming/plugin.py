"""Registers the stream manager."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.streaming import STREAMING, StreamManager

STREAM: Final = "stream"
"""What labels and the metrics of collections call them."""


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[StreamManager]:
    """Keep streams until the end, and close what is left then."""
    from moored.plugins.streaming.manager import LeasedStreams

    async with LeasedStreams() as manager:
        end = ctx.one(METADATA).collectable(STREAM, manager.listed)
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
