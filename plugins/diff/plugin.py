"""Registers the walking differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moored.kernel.config import setting
from moored.kernel.mounts import mounted, unmount_all
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.diff import DIFFER, Budget, Differ
from moored.kernel.ports.objects import METADATA
from moored.plugins.diff.walking import WalkingDiffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.differ.v1.walking"]"""

    max_layer_bytes: int = setting(
        256 << 30, ge=1 << 20, doc="bytes of a layer, both as uncompressed tar and as files; sparse files count whole"
    )
    max_layer_entries: int = setting(10_000_000, ge=1, doc="files, folders and links of a layer")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Differ]:
    """Serve the content of each call's namespace."""
    most = ctx.config.max_layer_bytes
    budget = Budget(stream_bytes=most, file_bytes=most, entries=ctx.config.max_layer_entries)
    folder = ctx.state / "tmpmounts"
    await asyncio.to_thread(_cleared, folder)
    yield WalkingDiffer(
        ctx.one(METADATA).content,
        ctx.log,
        budget=budget,
        processors=ctx.daemon.stream_processors(),
        mounted=partial(mounted, folder=folder),
    )


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
    requires=(METADATA,),
    summary="unpacks and makes layers by walking folders",
)
