"""Registers the object database."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.content import CONTENT
from moored.kernel.ports.databases import DATABASES
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.objects import METADATA, Objects
from moored.kernel.ports.snapshots import SNAPSHOTTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.metadata.v1.bolt"]"""

    content_sharing_policy: Literal["shared", "isolated"] = setting(
        "shared",
        doc="whether a blob that any namespace has serves all (shared), or only those of namespaces labelled "
        "containerd.io/namespace.shareable=true (isolated)",
    )
    no_sync: bool = setting(False, doc="accepted for containerd's sake, without effect: every write is durable")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Objects]:
    """Open the database in the plugin's own folder."""
    from moored.plugins.metadata.bolt.objects import BoltObjects
    from moored.plugins.metadata.bolt.opening import opened

    if ctx.config.no_sync:
        ctx.log.warning("setting 'no_sync' has no effect: every write is made durable")
    content, snapshotters = ctx.one(CONTENT), ctx.all(SNAPSHOTTER)
    async with opened(ctx.one(DATABASES), ctx.root, content, snapshotters, ctx.daemon.give_up) as database:
        ctx.facts.exports["root"] = str(ctx.root)
        ctx.facts.exports["policy"] = ctx.config.content_sharing_policy
        objects = BoltObjects(
            database=database,
            exchange=ctx.one(EVENT),
            content=content,
            snapshotters=snapshotters,
            policy=ctx.config.content_sharing_policy,
            log=ctx.log,
        )
        try:
            yield objects
        finally:
            await objects.close()


plugin = Registration(
    kind=METADATA,
    id="bolt",
    config=Config,
    open=open_,
    requires=(DATABASES, CONTENT, EVENT),
    after=(SNAPSHOTTER,),
    essential=True,
    summary="namespaces, images, containers, sandboxes, leases, and the names of content and snapshots",
)
