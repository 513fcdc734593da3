"""Registers the overlayfs snapshotter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.databases import DATABASES
from moored.kernel.ports.snapshots import SNAPSHOTTER, Snapshotter
from moored.plugins.snapshots.overlayfs.layers import Options, OverlayLayers
from moored.plugins.snapshots.start import check_root_path, started


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.snapshotter.v1.overlayfs"]"""

    root_path: str = setting("", doc="where snapshots live; empty takes the plugin's own folder")
    upperdir_label: bool = setting(False, doc="show each snapshot's upper folder as a label")
    sync_remove: bool = setting(False, doc="delete files at once on removal, not at the next cleanup")
    slow_chown: bool = setting(False, doc="let clients change owners file by file where mounts cannot map ids")
    mount_options: list[str] = setting(factory=list, doc="options for each overlay mount, not for bind mounts")

    def __post_init__(self) -> None:
        check_root_path(self.root_path)


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Snapshotter]:
    """Serve the folder; skipped where overlayfs does not work on it."""
    config = ctx.config
    options = Options(
        upperdir_label=config.upperdir_label,
        sync_remove=config.sync_remove,
        slow_chown=config.slow_chown,
        extra=tuple(config.mount_options),
    )
    async with started(ctx, config.root_path, lambda root: OverlayLayers(root, options)) as snapshotter:
        yield snapshotter


plugin = Registration(
    kind=SNAPSHOTTER,
    id="overlayfs",
    open=open_,
    config=Config,
    requires=(DATABASES,),
    summary="snapshots as folders with differences, stacked by the kernel",
)
