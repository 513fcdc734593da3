"""Registers the blockfile snapshotter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.databases import DATABASES
from moored.kernel.ports.snapshots import SNAPSHOTTER, Snapshotter
from moored.plugins.snapshots.blockfile.layers import BlockfileLayers, Options
from moored.plugins.snapshots.start import check_root_path, started


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.snapshotter.v1.blockfile"]"""

    root_path: str = setting("", doc="where snapshots live; empty takes the plugin's own folder")
    scratch_file: str = setting("", doc="a file with an empty file system, copied for snapshots without parent")
    fs_type: str = setting("", doc="the file system in it; empty is ext4")
    mount_options: list[str] = setting(factory=list, doc="options for each mount, beside loop")
    recreate_scratch: bool = setting(False, doc="copy scratch_file anew at each start")

    def __post_init__(self) -> None:
        check_root_path(self.root_path)


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Snapshotter]:
    """Serve the folder; skipped where there is no empty file system to copy."""
    config = ctx.config
    options = Options(
        scratch_file=config.scratch_file,
        recreate_scratch=config.recreate_scratch,
        fs_type=config.fs_type or "ext4",
        mount_options=tuple(config.mount_options),
    )
    async with started(ctx, config.root_path, lambda root: BlockfileLayers(root, options)) as snapshotter:
        yield snapshotter


plugin = Registration(
    kind=SNAPSHOTTER,
    id="blockfile",
    open=open_,
    config=Config,
    requires=(DATABASES,),
    summary="snapshots as files with file systems in them",
)
