"""Folders with differences, stacked by overlayfs.

snapshots/ID/         0700
├── fs                0755, owned as the parent's; what differs from the parent
└── work              0711, overlayfs's own; none in a view

Sources: the contract on snapshots (3.5), on the snapshotters' folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import (
    GID_MAPPING,
    ONLY_REMAP_IDS,
    REBASE,
    REMAP_IDS,
    UID_MAPPING,
    Kind,
    Labels,
    Usage,
)
from moored.kernel.workers import Stop
from moored.plugins.snapshots.durable import Durability
from moored.plugins.snapshots.folder import Folder, new_entry, new_name
from moored.plugins.snapshots.overlayfs.host import host_capabilities, host_options
from moored.plugins.snapshots.records.store import Snapshot
from moored.plugins.snapshots.tree import FOLDER, disk_usage

ENTRIES: Final = "snapshots"
UPPERDIR: Final = "containerd.io/snapshot/overlay.upperdir"
"""Label: the path of `fs`."""
MAX_ID: Final = (1 << 32) - 2
"""The highest user or group id; the one above it means none."""
_RANGE: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator chose; extra options are for overlay mounts only."""

    upperdir_label: bool = False
    sync_remove: bool = False
    slow_chown: bool = False
    extra: tuple[str, ...] = ()


class OverlayLayers:
    """See `Layers`."""

    quick = True

    def __init__(self, root: Path, options: Options) -> None:
        self.folder = Folder(root, (ENTRIES,))
        self._base = self.folder.path(ENTRIES)
        self.capabilities: frozenset[str] = frozenset()
        self.deferred = not options.sync_remove
        self._options = options
        self._extra: tuple[str, ...] = options.extra
        self._durability = Durability()

    def open(self) -> None:
        """See `Layers`; Skip where overlayfs cannot be mounted on the folder's file system."""
        self.folder.open()
        self._extra = (*self._options.extra, *host_options(self.folder, f"{ENTRIES}/0", self._options.extra))
        offered = {REMAP_IDS, REBASE} & host_capabilities()
        self.capabilities = frozenset(offered if self._options.slow_chown else offered | {ONLY_REMAP_IDS})

    def entry(self, snapshot: Snapshot) -> str:
        """See `Layers`."""
        return f"{ENTRIES}/{snapshot.id}"

    def make(self, snapshot: Snapshot, stop: Stop) -> None:
        """See `Layers`. Nothing is synced: an empty folder that a power cut takes is made again."""
        owner = self._owner(snapshot)
        entry = self.entry(snapshot)
        os.mkdir(new_name(entry), 0o700, dir_fd=self.folder.fd(entry))
        made = self.folder.open_entry(new_entry(entry))
        try:
            _make_folder("fs", 0o755, made, owner)
            if snapshot.kind is Kind.ACTIVE:
                _make_folder("work", 0o711, made, None)
        finally:
            os.close(made)
        self.folder.publish(entry)

    def seal(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        entry = self.entry(snapshot)
        with ExitStack() as opened:
            above = [self.folder.open_entry(entry), self.folder.fd(entry)]
            opened.callback(os.close, above[0])
            fd = os.open("fs", FOLDER, dir_fd=above[0])
            opened.callback(os.close, fd)
            usage = disk_usage(fd, stop)
            self._durability.give(fd, usage.inodes, above, stop)
        return usage

    def usage(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """See `Layers`."""
        fd = self._open_fs(snapshot.id)
        try:
            return disk_usage(fd, stop)
        finally:
            os.close(fd)

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """See `Layers`."""
        os.close(self._open_fs(snapshot.id))  # it must be a folder of ours
        options = self._mapping_options(snapshot.info.labels)
        parents = snapshot.parents
        if snapshot.kind is Kind.ACTIVE and parents:
            options += [f"workdir={self._path(snapshot.id, 'work')}", f"upperdir={self._path(snapshot.id)}"]
        elif len(parents) < 2:
            shown = parents[0] if parents else snapshot.id
            options += ["ro" if snapshot.kind is Kind.VIEW else "rw", "rbind"]
            return (Mount(type="bind", source=self._path(shown), options=tuple(options)),)
        options.append("lowerdir=" + ":".join(map(self._path, parents)))
        return (Mount(type="overlay", source="overlay", options=(*options, *self._extra)),)

    def labels(self, snapshot: Snapshot) -> dict[str, str]:
        """See `Layers`."""
        return {UPPERDIR: self._path(snapshot.id)} if self._options.upperdir_label else {}

    def _path(self, id_: int, name: str = "fs") -> str:
        return f"{self._base}/{id_}/{name}"

    def _open_fs(self, id_: int) -> int:
        entry = self.folder.open_entry(f"{ENTRIES}/{id_}")
        try:
            return os.open("fs", FOLDER, dir_fd=entry)
        finally:
            os.close(entry)

    def _owner(self, snapshot: Snapshot) -> tuple[int, int] | None:
        """Give the owner of a new snapshot's root."""
        labels = snapshot.info.labels
        if UID_MAPPING in labels or GID_MAPPING in labels:
            return mapped_root(labels)
        if not snapshot.parents:
            return None
        parent = self._open_fs(snapshot.parents[0])
        try:
            status = os.fstat(parent)
        finally:
            os.close(parent)
        return status.st_uid, status.st_gid

    def _mapping_options(self, labels: Labels) -> list[str]:
        if REMAP_IDS not in self.capabilities:
            return []
        pairs = (("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING))
        return [f"{option}={labels[label]}" for option, label in pairs if label in labels]


def _make_folder(name: str, mode: int, parent: int, owner: tuple[int, int] | None) -> None:
    os.mkdir(name, 0o700, dir_fd=parent)
    fd = os.open(name, FOLDER, dir_fd=parent)
    try:
        if owner is not None:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)  # whatever the umask
    finally:
        os.close(fd)


def mapped_root(labels: Labels) -> tuple[int, int]:
    """Give the host's user and group that 0 of a container is mapped to. Raises InvalidArgument."""
    return _mapped_zero(labels, UID_MAPPING), _mapped_zero(labels, GID_MAPPING)


def _mapped_zero(labels: Labels, label: str) -> int:
    text = labels.get(label, "")
    found = None
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise InvalidArgument(f"label {label!r} is {text[:256]!r}, wanted CONTAINER:HOST:LENGTH[,...]")
        container, host, length = map(int, match.groups())
        if max(container, host) + length - 1 > MAX_ID or not length:
            raise InvalidArgument(f"label {label!r} has {part!r}, wanted ids up to {MAX_ID} and a length of at least 1")
        if container == 0 and found is None:
            found = host
    if found is None:
        raise InvalidArgument(f"label {label!r} is {text[:256]!r}, wanted a mapping of 0")
    return found
