"""Registers the mount manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.mounts import MOUNT_HANDLER, MOUNT_MANAGER, MountHandler, MountManager
from moored.kernel.ports.objects import METADATA


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[MountManager]:
    """Put right what was left, and serve; what is mounted stays mounted when the daemon stops."""
    from moored.plugins.mounts.loop import LoopHandler
    from moored.plugins.mounts.manager import RecordingMountManager

    handlers: dict[str, MountHandler] = {"loop": LoopHandler(), **ctx.all(MOUNT_HANDLER)}
    records = ctx.one(METADATA).activations
    state = await asyncio.to_thread(lambda: ctx.state)
    # Clients may have things made in the folders of snapshotters, which lie beside the plugin's own.
    manager = RecordingMountManager(records, state=state, roots=[ctx.daemon.root], handlers=handlers, log=ctx.log)
    await manager.start()
    end = records.on_sweep(manager.sweep)
    try:
        yield manager
    finally:
        end()


plugin = Registration(
    kind=MOUNT_MANAGER,
    id="bolt",
    open=open_,
    requires=(METADATA,),
    after=(MOUNT_HANDLER,),
    summary="carries out mounts that need more than mount(2), and keeps track of them",
)
