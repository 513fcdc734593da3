"""Registers the walking differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.errors import ResourceExhausted, Unavailable
from moored.kernel.mounts import mounted, unmount_all
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.diff import DIFFER, Budget, Differ
from moored.kernel.ports.events import EVENT, Exchange
from moored.kernel.ports.mounts import MOUNT_MANAGER
from moored.kernel.ports.objects import METADATA
from moored.plugins.diff.walking import APPLY_MODULE, WalkingDiffer
from moored.plugins.diff.worker import LINGER_SECONDS, MAX_PROCESSES, STALL_SECONDS, Crew


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.differ.v1.walking"]"""

    max_layer_bytes: int = setting(
        256 << 30, ge=1 << 20, doc="bytes of a layer, both as uncompressed tar and as files; sparse files count whole"
    )
    max_layer_entries: int = setting(10_000_000, ge=1, doc="files, folders and links of a layer")
    max_processes: int = setting(
        MAX_PROCESSES, ge=1, le=1024, doc="layers unpacked or made side by side, each by a process; further ones wait"
    )
    stall_timeout: Duration = setting(
        Duration(STALL_SECONDS), doc="how long such a process may make no progress before it is killed; 0: for ever"
    )


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Differ]:
    """Serve the content of each call's namespace."""
    most = ctx.config.max_layer_bytes
    budget = Budget(stream_bytes=most, file_bytes=most, entries=ctx.config.max_layer_entries)
    folder = ctx.state / "tmpmounts"
    await asyncio.to_thread(_cleared, folder)
    manager = next(iter(ctx.all(MOUNT_MANAGER).values()), None)
    stall = max(ctx.config.stall_timeout, 0.0) or None
    async with (
        Crew(ctx.config.max_processes, stall, ctx.log, linger=LINGER_SECONDS) as crew,
        expecting(crew, ctx.one(EVENT)),
    ):
        yield WalkingDiffer(
            ctx.one(METADATA).content,
            ctx.log,
            budget=budget,
            processors=ctx.daemon.stream_processors(),
            mounted=partial(mounted, folder=folder),
            activated=manager.activated if manager is not None else nullcontext,
            crew=crew,
        )


@asynccontextmanager
async def expecting(crew: Crew, events: Exchange) -> AsyncGenerator[None]:
    """Have a process ready whenever content has come in: mostly that is an image, which is unpacked next."""

    async def expect() -> None:
        while True:
            # who falls behind is cut off, by content that has come in
            with suppress(ResourceExhausted):
                async with events.subscribe('topic=="/content/create"') as created:
                    async for _ in created:
                        crew.expect(APPLY_MODULE)
            crew.expect(APPLY_MODULE)

    async def watch() -> None:
        with suppress(Unavailable):
            await expect()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def _cleared(folder: Path) -> None:
    """Make the folder for mounts, and take down what a crash left in it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.iterdir():
        unmount_all(left, lazy=True)
        left.rmdir()


plugin = Registration(
    kind=DIFFER,
    id="walking",
    open=open_,
    config=Config,
    requires=(METADATA, EVENT),
    after=(MOUNT_MANAGER,),
    summary="unpacks and makes layers by walking folders",
)
