"""News of the objects of a transfer."""

from __future__ import annotations

import time
from typing import Final

from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.ingests import ref_key
from moored.kernel.ports.transfer import Progress, Report

PAUSE: Final = 0.3
"""Seconds between two numbers of one object."""


class Tracker:
    """Tells the states of objects as the transfer service does; without somebody to tell, nothing.

    root is the parent of all; moving is what their bytes do: `downloading` or `uploading`.
    """

    def __init__(self, report: Report | None, root: str, moving: str) -> None:
        self._report = report
        self._root = root
        self._moving = moving
        self._told: dict[str, float] = {}

    def say(self, event: str) -> None:
        """Tell something of the whole transfer."""
        if self._report is not None:
            self._report(Progress(event=event))

    def waiting(self, entry: Entry) -> None:
        """Note an object that is to be moved."""
        self._tell("waiting", entry, 0)

    def exists(self, entry: Entry) -> None:
        """Note that it need not be moved."""
        self._tell("already exists", entry, entry.size)

    def moved(self, entry: Entry, offset: int) -> None:
        """Note how far it is."""
        now = time.monotonic()
        if now - self._told.get(entry.digest, -PAUSE) >= PAUSE:
            self._told[entry.digest] = now
            self._tell(self._moving, entry, offset)

    def complete(self, entry: Entry) -> None:
        """Note that all of it is there."""
        self._tell("complete", entry, entry.size)

    def saved(self, name: str, entry: Entry) -> None:
        """Note that an image got a name."""
        if self._report is not None:
            self._report(Progress(event="saved", name=name, descriptor=entry.descriptor()))

    def _tell(self, event: str, entry: Entry, progress: int) -> None:
        if self._report is not None:
            news = Progress(
                event=event,
                name=ref_key(entry),
                parents=(self._root,),
                progress=progress,
                total=entry.size,
                descriptor=entry.descriptor(),
            )
            self._report(news)
