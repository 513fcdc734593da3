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
    """Keep databases of the daemon's root together in the plugin's own folder, others where they are asked for."""
    opener = LmdbOpener(ctx.log, ctx.root.parent, ctx.root)
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
    summary="metadata stores on LMDB: one file for all that lies below the root",
)
