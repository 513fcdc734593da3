"""Subvolumes: `active/ID` writable, `view/ID` read-only, `snapshots/ID` read-only and a parent of others.

A commit makes `snapshots/ID` of `active/ID`, which goes once the record says committed.
Source: the contract on the snapshotters' folders.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from moored.kernel.mounts import lookup
from moored.kernel.plugin import Skip
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Kind, Usage
from moored.kernel.workers import Stop
from moored.plugins.snapshots.btrfs import subvolumes
from moored.plugins.snapshots.btrfs.difference import difference
from moored.plugins.snapshots.folder import Folder, name_of, new_entry, new_name
from moored.plugins.snapshots.records.store import Snapshot
from moored.plugins.snapshots.tree import disk_usage, sync_filesystem

_FOLDERS: Final[Mapping[Kind, str]] = MappingProxyType(
    {Kind.ACTIVE: "active", Kind.VIEW: "view", Kind.COMMITTED: "snapshots"}
)


class BtrfsFolder(Folder):
    """A folder whose entries are subvolumes."""

    def remove(self, entry: str, stop: Stop) -> None:
        """See Folder. A subvolume goes at once, so it needs no other name before."""
        subvolumes.remove(name_of(entry), self.fd(entry), stop)


class BtrfsLayers:
    """See `Layers`."""

    capabilities: frozenset[str] = frozenset()
    deferred = False
    quick = False

    def __init__(self, root: Path) -> None:
        self.folder: Folder = BtrfsFolder(root, tuple(_FOLDERS.values()))
        self._device = ""

    def open(self) -> None:
        """See `Layers`; Skip where the folder is not on btrfs."""
        self.folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        mount = lookup(self.folder.root)
        if mount.type != "btrfs":
            raise Skip(f"{str(self.folder.root)!r} is on {mount.type}, the btrfs snapshotter needs a btrfs file system")
        self.folder.root.chmod(0o700)
        self._device = mount.source
        self.folder.open()

    def entry(self, snapshot: Snapshot) -> str:
        """See `Layers`."""
        return f"{_FOLDERS[snapshot.kind]}/{snapshot.id}"

    def make(self, snapshot: Snapshot, stop: Stop) -> None:
        """See `Layers`."""
        entry = self.entry(snapshot)
        if snapshot.parents:
            self._copy(self._parent(snapshot), entry, read_only=snapshot.kind is Kind.VIEW)
            return
        fd = self.folder.fd(entry)
        subvolumes.create(new_name(entry), fd)
        made = self.folder.open_entry(new_entry(entry))
        try:
            os.fchmod(made, 0o755)
        finally:
            os.close(made)
        self.folder.publish(entry)

    def seal(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        usage = self.usage(snapshot, stop)
        active = self.entry(snapshot)
        # A snapshot has what is on the disk, or on its way there when it is taken.
        sync_filesystem(self.folder.fd(active))
        self._copy(active, f"{_FOLDERS[Kind.COMMITTED]}/{snapshot.id}", read_only=True)
        return usage

    def usage(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        fd = self.folder.open_entry(self.entry(snapshot))
        try:
            if not snapshot.parents:
                return disk_usage(fd, stop)
            parent = self.folder.open_entry(self._parent(snapshot))
            try:
                return difference(parent, fd, stop)
            finally:
                os.close(parent)
        finally:
            os.close(fd)

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """See `Layers`."""
        fd = self.folder.open_entry(self.entry(snapshot))
        try:
            options = [f"subvolid={subvolumes.id_of(fd)}"]
        finally:
            os.close(fd)
        if snapshot.kind is Kind.VIEW:
            options.append("ro")
        return (Mount(type="btrfs", source=self._device, options=tuple(options)),)

    def labels(self, snapshot: Snapshot) -> dict[str, str]:
        """See `Layers`."""
        return {}

    def _parent(self, snapshot: Snapshot) -> str:
        return f"{_FOLDERS[Kind.COMMITTED]}/{snapshot.parents[0]}"

    def _copy(self, source: str, entry: str, *, read_only: bool) -> None:
        fd = self.folder.open_entry(source)
        try:
            # Whole or not there at all, so that it needs no other name first.
            subvolumes.snapshot(fd, name_of(entry), self.folder.fd(entry), read_only=read_only)
        finally:
            os.close(fd)
