"""Files with file systems in them: `snapshots/ID` is a copy of the parent's file, or of `scratch`, an empty one.

A view of a parent has no entry, it shows the parent's. Source: the contract on the snapshotters' folders.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moored.kernel.errors import DataLoss
from moored.kernel.plugin import Skip
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Kind, Usage
from moored.kernel.workers import Stop
from moored.plugins.snapshots.faults import NO_ROOM
from moored.plugins.snapshots.folder import Folder, name_of, new_name
from moored.plugins.snapshots.native.copy import copy_contents
from moored.plugins.snapshots.records.store import Snapshot

ENTRIES: Final = "snapshots"
SCRATCH: Final = "scratch"
_BLOCK: Final = 512
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator chose: the file that `scratch` is copied from, and how the files are mounted."""

    scratch_file: str = ""
    recreate_scratch: bool = False
    fs_type: str = "ext4"
    mount_options: tuple[str, ...] = ()


class BlockfileLayers:
    """See `Layers`."""

    capabilities: frozenset[str] = frozenset()
    deferred = False
    quick = False

    def __init__(self, root: Path, options: Options) -> None:
        self.folder = Folder(root, (ENTRIES,))
        self._options = options
        self._mount_options = options.mount_options
        if "loop" not in self._mount_options:
            self._mount_options = (*self._mount_options, "loop")

    def open(self) -> None:
        """See `Layers`; Skip where there is no empty file system to begin with."""
        self.folder.open()
        scratch = self.folder.root / SCRATCH
        if scratch.exists() and not self._options.recreate_scratch:
            return
        if not self._options.scratch_file:
            raise Skip("no scratch_file is set, the blockfile snapshotter needs an empty file system in a file")
        fresh = scratch.with_name(f"{SCRATCH}.new")
        fresh.unlink(missing_ok=True)
        source = os.open(self._options.scratch_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _copy(source, str(fresh), None, Stop())
        except OSError as error:
            fresh.unlink(missing_ok=True)
            # On a full disk the last copy has to do, so that snapshots can be removed.
            if error.errno not in NO_ROOM or not scratch.exists():
                raise
        else:
            fresh.rename(scratch)
        finally:
            os.close(source)

    def entry(self, snapshot: Snapshot) -> str | None:
        """See `Layers`."""
        if snapshot.kind is Kind.VIEW and snapshot.parents:
            return None
        return f"{ENTRIES}/{snapshot.id}"

    def make(self, snapshot: Snapshot, stop: Stop) -> None:
        """See `Layers`."""
        entry = f"{ENTRIES}/{snapshot.id}"
        parents = snapshot.parents
        source = self._open(parents[0]) if parents else os.open(self.folder.root / SCRATCH, _READ)
        try:
            _copy(source, new_name(entry), self.folder.fd(entry), stop)
        finally:
            os.close(source)
        self.folder.publish(entry)

    def seal(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        fd = self._open(snapshot.id)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return self.usage(snapshot, stop)

    def usage(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`. What was freed in the parent's file system and written again does not count."""
        size = self._allocated(snapshot.id)
        if snapshot.parents:
            size = max(0, size - self._allocated(snapshot.parents[0]))
        return Usage(size, 1)

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """See `Layers`."""
        own = self.entry(snapshot) is not None
        shown = snapshot.id if own else snapshot.parents[0]
        os.close(self._open(shown))  # it must be a file of ours
        access = "ro" if snapshot.kind is Kind.VIEW else "rw"
        source = self.folder.path(f"{ENTRIES}/{shown}")
        return (Mount(type=self._options.fs_type, source=source, options=(*self._mount_options, access)),)

    def labels(self, snapshot: Snapshot) -> dict[str, str]:
        """See `Layers`."""
        return {}

    def _open(self, id_: int) -> int:
        entry = f"{ENTRIES}/{id_}"
        fd = os.open(name_of(entry), _READ | os.O_NONBLOCK, dir_fd=self.folder.fd(entry))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise DataLoss(f"the file of the snapshot with the id {id_} is no file")
        return fd

    def _allocated(self, id_: int) -> int:
        fd = self._open(id_)
        try:
            return os.fstat(fd).st_blocks * _BLOCK
        finally:
            os.close(fd)


def _copy(source: int, name: str, folder: int | None, stop: Stop) -> None:
    """Copy an open file to a new one, durable on return."""
    target = os.open(name, _MAKE, 0o600, dir_fd=folder)
    try:
        copy_contents(source, target, os.fstat(source).st_size, stop)
        os.fsync(target)
    finally:
        os.close(target)
