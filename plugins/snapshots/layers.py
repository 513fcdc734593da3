"""What a kind of snapshotter does on disk, called by `snapshotter.py`, which does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Usage
from moored.kernel.workers import Stop
from moored.plugins.snapshots.folder import Folder
from moored.plugins.snapshots.records.store import Snapshot


class Layers(Protocol):
    """Makes, measures and shows the files of snapshots.

    A snapshot's files are one *entry* of the folder; a view may have none and show its parent's. `make` comes before
    the record and `folder.remove` after it, so that an entry without a record belongs to nothing.

    Errors: OSError, which becomes the port's error about the snapshot, or errors of the port. After an error, leftovers
    of the snapshot's entries are removed by the caller.
    Concurrency: methods run in threads and may overlap for different snapshots.
    Cancellation: long work looks at its Stop.
    """

    folder: Folder
    capabilities: frozenset[str]
    deferred: bool
    """Whether removed snapshots leave their files for the next cleanup."""
    quick: bool
    """Whether `make` makes a few folders only: that is done by the change that records them, without another thread."""

    def open(self) -> None:
        """Open the folder and look at the host. Raises Skip when this host cannot serve."""

    def entry(self, snapshot: Snapshot) -> str | None:
        """Give the entry of a snapshot of the kind that it has now, None if it has none of its own."""

    def make(self, snapshot: Snapshot, stop: Stop) -> None:
        """Make the entry of an active snapshot or view, whole; called only where `entry` gives one."""

    def seal(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """Measure an active snapshot that is about to be committed, and make its files durable.

        Where `entry` gives another one for committed snapshots, make that one.
        """

    def usage(self, snapshot: Snapshot, stop: Stop) -> Usage:
        """Measure an active snapshot."""

    def mounts(self, snapshot: Snapshot) -> Sequence[Mount]:
        """Give the mounts of an active snapshot or view."""

    def labels(self, snapshot: Snapshot) -> dict[str, str]:
        """Give labels to show beside the recorded ones; must not block."""
