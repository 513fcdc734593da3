"""Registers the opener of LMDB databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.databases import DATABASES, DatabaseOpener
from moored.plugins.metadata.lmdb.opener import LmdbOpener


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[DatabaseOpener]:
    """Open databases wherever they are asked for; this plugin has no folder of its own, only the one around it."""
    opener = LmdbOpener(ctx.log, ctx.root.parent)
    checking = asyncio.get_running_loop().create_task(opener.check_readers())
    try:
        yield opener
    finally:
        checking.cancel()
        with suppress(asyncio.CancelledError):
            await checking


plugin = Registration(
    kind=DATABASES,
    id="lmdb",
    open=open_,
    summary="metadata stores on LMDB, each in a folder of its plugin",
)
