"""The mark of a store that was closed in order: how its data file was then, so that one unchanged since is not walked.

    <folder>/closed    format | inode | size | times of the last write and change, ns | last transaction

A start takes it away, so that one after a crash finds none. Neither that nor the mark itself is synced: a mark that a
power cut brings back fits no file that was written to since, for each commit has a transaction of its own, and half a
mark fits none.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CLOSED: Final = "closed"
FORMAT: Final = "moored-closed 1"
MAX_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Mark:
    """What was read, and when it was written, in ns since 1970; an empty one fits no file."""

    text: bytes = b""
    written: int = 0

    def fits(self, status: os.stat_result, transaction: int) -> bool:
        """Whether a data file with this last transaction is as it was when the mark was written."""
        # A change within the tick of the file's own last one shows in no time stamp.
        return self.text == _text(status, transaction) and self.written > status.st_ctime_ns


def take(folder: Path) -> Mark:
    """Read a folder's mark and remove it; an empty one if that cannot be done."""
    path = folder / CLOSED
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = Mark(os.read(fd, MAX_BYTES), os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)
        path.unlink()
    except OSError:
        return Mark()
    return found


def put(folder: Path, data: int, transaction: int) -> None:
    """Mark a folder, whose data file is open as `data` and no longer LMDB's; not where the disk has no room for it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(OSError):
        fd = os.open(folder / CLOSED, flags, 0o600)
        try:
            os.write(fd, _text(os.fstat(data), transaction))
        finally:
            os.close(fd)


def _text(status: os.stat_result, transaction: int) -> bytes:
    facts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, transaction)
    return f"{FORMAT} {' '.join(map(str, facts))}\n".encode()
