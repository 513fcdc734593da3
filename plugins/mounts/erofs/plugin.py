"""Registers the handler of erofs mounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.mountfds import known
from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.mounts import MOUNT_HANDLER, MountHandler


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[MountHandler]:
    """Serve; skipped where the kernel has no erofs."""
    from moored.plugins.mounts.erofs.handler import ErofsHandler

    if not await asyncio.to_thread(known, "erofs"):
        raise Skip("the kernel has no erofs")
    yield ErofsHandler()


plugin = Registration(
    kind=MOUNT_HANDLER,
    id="erofs",
    open=open_,
    summary="mounts erofs images",
)
