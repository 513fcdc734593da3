"""News of the objects of a transfer, made from what is done with them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.ingests import ref_key
from moored.kernel.ports.transfer import Progress, Report

PAUSE: Final = 0.3
"""Seconds between two numbers of one object."""


class Tracker:
    """Tells each object's states; without somebody to tell, nothing.

    root      the parent of objects without one
    moving    what an object's bytes do: `downloading`, `uploading`
    """

    def __init__(self, report: Report | None, root: str, moving: str) -> None:
        self._report = report
        self._root = root
        self._moving = moving
        self._parents: dict[str, list[str]] = {}
        self._told: dict[str, float] = {}
        self._waiting: set[str] = set()

    def children(self, parent: Entry, children: Sequence[Entry]) -> None:
        """Note who belongs to whom; before the children are added."""
        if self._report is not None:
            for child in children:
                self._parents.setdefault(child.digest, []).append(ref_key(parent))

    def add(self, entry: Entry) -> None:
        """Note an object that is to be moved; again is not told."""
        if entry.digest not in self._waiting:
            self._waiting.add(entry.digest)
            self._tell("waiting", entry, 0)

    def exists(self, entry: Entry) -> None:
        """Note that it need not be moved."""
        self._tell("already exists", entry, entry.size, with_parents=False)

    def moved(self, entry: Entry, offset: int) -> None:
        """Note how far it is."""
        self._now_and_then(self._moving, entry, offset)

    def complete(self, entry: Entry) -> None:
        """Note that all of it is there."""
        self._tell("complete", entry, entry.size)

    def extracting(self, entry: Entry, offset: int) -> None:
        """Note how far its unpacking is."""
        self._now_and_then("extracting", entry, offset)

    def extracted(self, entry: Entry) -> None:
        """Note that it is unpacked."""
        self._tell("extracted", entry, entry.size)

    def _now_and_then(self, event: str, entry: Entry, offset: int) -> None:
        now = time.monotonic()
        if now - self._told.get(entry.digest, -PAUSE) >= PAUSE:
            self._told[entry.digest] = now
            self._tell(event, entry, offset)

    def _tell(self, event: str, entry: Entry, progress: int, *, with_parents: bool = True) -> None:
        if self._report is None:
            return
        self._report(
            Progress(
                event=event,
                name=ref_key(entry),
                parents=tuple(self._parents.get(entry.digest, [self._root])) if with_parents else (),
                progress=progress,
                total=entry.size,
                descriptor=entry.descriptor(),
            )
        )
