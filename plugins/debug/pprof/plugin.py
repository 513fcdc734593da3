"""Registers the pages under /debug/pprof and /debug/vars."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.http import HTTP, DebugPages


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[DebugPages]:
    """Offer the pages; nothing runs until one is fetched."""
    from moored.plugins.debug.pprof.pages import PprofPages

    yield PprofPages(ctx.daemon)


plugin = Registration(kind=HTTP, id="pprof", open=open_, summary="stacks, memory and profile of the daemon")
