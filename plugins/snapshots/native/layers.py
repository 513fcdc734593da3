"""Folders with full copies: `snapshots/ID` is the root of the snapshot's tree.

A view of a parent has no entry, it shows the parent's. Source: the contract on the snapshotters' folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Kind, Usage
from moored.kernel.workers import Stop
from moored.plugins.snapshots.folder import Folder, new_entry, new_name
from moored.plugins.snapshots.native.copy import copy_tree
from moored.plugins.snapshots.records.store import Snapshot
from moored.plugins.snapshots.tree import disk_usage, sync_filesystem

ENTRIES = "snapshots"


class NativeLayers:
    """See `Layers`."""

    capabilities: frozenset[str] = frozenset()
    deferred = False
    quick = False

    def __init__(self, root: Path) -> None:
        self.folder = Folder(root, (ENTRIES,))

    def open(self) -> None:
        """See `Layers`; any host will do."""
        self.folder.open()

    def entry(self, snapshot: Snapshot) -> str | None:
        """See `Layers`."""
        if snapshot.kind is Kind.VIEW and snapshot.parents:
            return None
        return f"{ENTRIES}/{snapshot.id}"

    def make(self, snapshot: Snapshot, stop: Stop) -> None:
        """See `Layers`."""
        entry = f"{ENTRIES}/{snapshot.id}"
        fd = self.folder.fd(entry)
        os.mkdir(new_name(entry), 0o700, dir_fd=fd)
        made = self.folder.open_entry(new_entry(entry))
        try:
            os.fchmod(made, 0o755)
            if snapshot.parents:
                parent = self.folder.open_entry(f"{ENTRIES}/{snapshot.parents[0]}")
                try:
                    copy_tree(parent, made, stop)
                finally:
                    os.close(parent)
                # A copy that a power cut tears could not be told from a whole one.
                sync_filesystem(made)
        finally:
            os.close(made)
        self.folder.publish(entry)

    def seal(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        usage = self.usage(snapshot, stop)
        sync_filesystem(self.folder.fd(f"{ENTRIES}/{snapshot.id}"))
        return usage

    def usage(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        fd = self.folder.open_entry(f"{ENTRIES}/{snapshot.id}")
        try:
            return disk_usage(fd, stop)
        finally:
            os.close(fd)

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """See `Layers`."""
        shown = self.entry(snapshot) or f"{ENTRIES}/{snapshot.parents[0]}"
        os.close(self.folder.open_entry(shown))  # it must be a folder of ours
        access = "ro" if snapshot.kind is Kind.VIEW else "rw"
        return (Mount(type="bind", source=self.folder.path(shown), options=("rbind", access)),)

    def labels(self, snapshot: Snapshot) -> dict[str, str]:
        """See `Layers`."""
        return {}
