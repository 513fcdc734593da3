"""Snapshotters for tests, on the file systems that they need, and what they may not leave behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog

from moored.kernel import mounts as mounting
from moored.kernel.ports.databases import DatabaseOpener
from moored.kernel.ports.mounts import Mount
from moored.plugins.metadata.lmdb.opener import LmdbOpener
from moored.plugins.snapshots.blockfile.layers import BlockfileLayers
from moored.plugins.snapshots.blockfile.layers import Options as BlockfileOptions
from moored.plugins.snapshots.btrfs.layers import BtrfsLayers
from moored.plugins.snapshots.layers import Layers
from moored.plugins.snapshots.native.layers import NativeLayers
from moored.plugins.snapshots.overlayfs.layers import Options, OverlayLayers
from moored.plugins.snapshots.snapshotter import RecordedSnapshotter, open_snapshotter
from unit.descriptors import descriptors

KINDS = ("native", "overlayfs", "btrfs", "blockfile")
LOG = structlog.get_logger()


def layers_of(kind: str, root: Path) -> Layers:
    """The layers of a kind, with its defaults."""
    if kind == "native":
        return NativeLayers(root)
    if kind == "btrfs":
        return BtrfsLayers(root)
    if kind == "blockfile":
        return BlockfileLayers(root, BlockfileOptions(scratch_file=str(root.parent / "scratch")))
    return OverlayLayers(root, Options())


@asynccontextmanager
async def opened(layers: Layers, databases: DatabaseOpener | None = None) -> AsyncGenerator[RecordedSnapshotter]:
    """A running snapshotter, whose records have a file to themselves unless other databases are given."""
    async with open_snapshotter(layers, databases or LmdbOpener(LOG), LOG) as snapshotter:
        yield snapshotter


def openers(folder: Path) -> dict[str, LmdbOpener]:
    """Openers whose databases below `folder` have files to themselves, or one in common."""
    return {"apart": LmdbOpener(LOG), "joined": LmdbOpener(LOG, folder, folder / "common")}


@asynccontextmanager
async def mounted(mounts: Sequence[Mount]) -> AsyncGenerator[Path]:
    """The mounts on a new folder."""
    context = mounting.mounted(mounts)
    place = await asyncio.to_thread(context.__enter__)
    try:
        yield place
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@contextmanager
def image(file: Path, size: int, *mkfs: str, place: Path) -> Generator[Path]:
    """A file system in a file, mounted on `place` for the block."""
    with file.open("wb") as made:
        made.truncate(size)
    subprocess.run([*mkfs, str(file)], check=True, capture_output=True)
    place.mkdir()
    kind = mkfs[0].partition(".")[2]
    mounting.mount(Mount(type=kind, source=str(file), options=("loop",)), place)
    try:
        yield place
    finally:
        patience = time.monotonic() + 5  # a loop device on one of its files goes a moment after its own unmount
        while _loops_on(place) and time.monotonic() < patience:
            time.sleep(0.02)
        mounting.unmount_all(place)


def _loops_on(place: Path) -> list[str]:
    """The files below a folder that are loop devices."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            found.append(backing.read_text())
    return [file for file in found if file.startswith(f"{place}/")]


def scratch(file: Path) -> None:
    """An empty ext4 in a file, with a root that all may enter."""
    with file.open("wb") as made:
        made.truncate(16 << 20)
    options = ("-q", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-O", "^has_journal", "-m", "0")
    subprocess.run(["mkfs.ext4", *options, str(file)], check=True, capture_output=True)


@contextmanager
def nothing_left() -> Generator[None]:
    """Fails if the block leaves a mount, a loop device, a descriptor or a process."""
    before = _things()
    yield
    after = _things()
    patience = time.monotonic() + 5  # a loop device goes once no mount namespace has its mount any more
    while after["loops"] - before["loops"] and time.monotonic() < patience:
        time.sleep(0.02)
        after = _things()
    assert {key: after[key] - before[key] for key in after} == {key: set() for key in after}


def _things() -> dict[str, set[object]]:
    mounts = {line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    here = os.getpid()
    return {
        "mounts": {place for place in mounts if "pytest" in place or "/mount-" in place},
        "loops": {
            backing.read_text().strip()
            for backing in Path("/sys/block").glob("loop*/loop/backing_file")
            if "pytest" in backing.read_text()
        },
        "descriptors": set(descriptors().items()),
        "children": set(Path(f"/proc/self/task/{here}/children").read_text().split()),
    }


@contextmanager
def place_for(kind: str, folder: Path) -> Generator[Path]:
    """A folder on a file system that a kind of snapshotter works on."""
    if kind == "btrfs":
        with image(folder / "image", 512 << 20, "mkfs.btrfs", place=folder / "btrfs") as place:
            yield place
        return
    if kind == "blockfile":
        scratch(folder / "scratch")
    yield folder
