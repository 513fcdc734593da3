"""A disk for tests to cut the power of: copies of it have what was submitted, not what only the page cache has.

It is an ext4 in a file on a btrfs that shares extents, so that a copy of the file takes no time and is the disk at one
moment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from unit.snapshots.world import image

SIZE = 192 << 20

needs_disk = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
    pytest.mark.skipif(not shutil.which("mkfs.btrfs") or not shutil.which("mkfs.ext4"), reason="needs mkfs"),
]


class Disk:
    """The ext4, mounted on `disk` in the folder, and copies of it."""

    def __init__(self, folder: Path, btrfs: Path) -> None:
        self.folder = folder
        self.file = btrfs / "disk"
        self.btrfs = btrfs
        self.cuts = 0

    def cut(self) -> Path:
        """The disk as it is now."""
        self.cuts += 1
        copy = self.btrfs / f"cut-{self.cuts}"
        subprocess.run(["cp", "--reflink=always", str(self.file), str(copy)], check=True)
        return copy

    @contextmanager
    def mounted(self, copy: Path) -> Generator[Path]:
        """A copy, after the file system has put itself right; it is gone after the block."""
        place = self.folder / copy.name
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", str(copy), str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
            copy.unlink()


@contextmanager
def disk_in(folder: Path) -> Generator[Disk]:
    """The disk, for the block."""
    btrfs = folder / "btrfs"
    with (
        image(folder / "outer", 1 << 30, "mkfs.btrfs", "-q", place=btrfs),
        image(btrfs / "disk", SIZE, "mkfs.ext4", "-q", place=folder / "disk"),
    ):
        yield Disk(folder, btrfs)
