"""Registers the btrfs snapshotter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.databases import DATABASES
from moored.kernel.ports.snapshots import SNAPSHOTTER, Snapshotter
from moored.plugins.snapshots.btrfs.layers import BtrfsLayers
from moored.plugins.snapshots.start import check_root_path, started


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.snapshotter.v1.btrfs"]"""

    root_path: str = setting("", doc="where snapshots live; empty takes the plugin's own folder")

    def __post_init__(self) -> None:
        check_root_path(self.root_path)


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Snapshotter]:
    """Serve the folder; skipped where it is not on btrfs."""
    async with started(ctx, ctx.config.root_path, BtrfsLayers) as snapshotter:
        yield snapshotter


plugin = Registration(
    kind=SNAPSHOTTER,
    id="btrfs",
    open=open_,
    config=Config,
    requires=(DATABASES,),
    summary="snapshots as subvolumes of a btrfs file system",
)
