"""What a tree has that its parent has not: measured by comparing entries, as shared blocks cannot be told apart."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from moored.kernel.ports.snapshots import Usage
from moored.kernel.workers import Stop
from moored.plugins.snapshots.tree import Descent, open_folder

_BLOCK: Final = 512
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})


def difference(parent: int, child: int, stop: Stop) -> Usage:
    """Measure what is new or changed in the open folder `child` against `parent`. Raises OSError.

    A file counts whole if its inode, change time or size differs. What changes meanwhile may count or not.
    """
    measured = _Difference(stop)
    with Descent(child) as at:
        # Folders of the parent that stand beside those of the child; None below one that is new.
        beside: list[int | None] = [os.dup(parent)]
        try:
            pending = [measured.scan(at.fd, beside[-1])]
            while pending:
                if not pending[-1]:
                    pending.pop()
                    _close(beside.pop())
                    if pending:
                        at.leave()
                    continue
                name = pending[-1].pop()
                try:
                    at.enter(name)
                except OSError as error:
                    if error.errno not in _GONE:
                        raise
                    continue
                beside.append(_open_beside(name, beside[-1]))
                pending.append(measured.scan(at.fd, beside[-1]))
        finally:
            for fd in beside:
                _close(fd)
    return Usage(measured.size, measured.inodes)


class _Difference:
    """The sums so far."""

    def __init__(self, stop: Stop) -> None:
        self.size = 0
        self.inodes = 0
        self._stop = stop
        self._linked: set[int] = set()

    def scan(self, fd: int, beside: int | None) -> list[str]:
        """Count the entries of a folder and give the folders among them."""
        self._stop.check()
        folders = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                if not _same(entry.name, beside, status):
                    self._count(status)
        return folders

    def _count(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._linked:
                return
            self._linked.add(status.st_ino)
        self.size += status.st_blocks * _BLOCK
        self.inodes += 1


def _same(name: str, beside: int | None, status: os.stat_result) -> bool:
    if beside is None:
        return False
    try:
        before = os.stat(name, dir_fd=beside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (before.st_ino, before.st_ctime_ns, before.st_size) == (status.st_ino, status.st_ctime_ns, status.st_size)


def _open_beside(name: str, beside: int | None) -> int | None:
    if beside is None:
        return None
    try:
        return open_folder(name, beside)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
