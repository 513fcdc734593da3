"""Makes the files of a snapshot durable: a few by themselves where much else is unwritten, or their whole file system.

Syncing a file system is the quickest way as long as nobody else writes to it: one commit of its journal for all files.
But it waits for whatever else is unwritten there, be it gigabytes; a file alone waits for itself, and takes a flush of
the disk.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from moored.kernel.libc import libc
from moored.kernel.workers import Stop
from moored.plugins.snapshots.tree import FOLDER, Descent, sync_filesystem

MOST: Final = 64
"""Files and folders that are made durable by themselves; each is open for a while."""
WORTH: Final = 512 << 10
"""Unwritten bytes on this host, for each of these, from which on that is worth it."""
LOOK_SECONDS: Final = 0.1
"""How long what was unwritten counts."""
MEMINFO: Final = Path("/proc/meminfo")
_UNWRITTEN: Final = re.compile(rb"^(?:Dirty|Writeback): +([0-9]+) kB$", re.MULTILINE)
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE: Final = 2
"""SYNC_FILE_RANGE_WRITE."""


class Durability:
    """Does it for one folder of snapshots; the first time always whole, so that what is above the folder is there."""

    def __init__(self, meminfo: Path = MEMINFO) -> None:
        self._meminfo = meminfo
        self._is_rooted = False
        self._unwritten = 0
        self._looked = -LOOK_SECONDS

    def give(self, top: int, inodes: int, above: Sequence[int], stop: Stop) -> None:
        """Make the tree of the open folder `top` and the open folders `above`, nearest first, durable.

        `inodes` is how many there are in the tree; nobody writes to it. Blocks. Raises OSError.
        """
        if self._is_rooted and self._is_worth_it(inodes) and _each(top, stop):
            for fd in above:
                os.fsync(fd)
            return
        sync_filesystem(top)
        self._is_rooted = True

    def _is_worth_it(self, inodes: int) -> bool:
        if inodes > MOST:
            return False
        if (now := time.monotonic()) - self._looked >= LOOK_SECONDS:
            self._unwritten, self._looked = unwritten_bytes(self._meminfo.read_bytes()), now
        return self._unwritten >= inodes * WORTH


def unwritten_bytes(meminfo: bytes) -> int:
    """Give the bytes that this host has to write to disks still."""
    return sum(int(number) for number in _UNWRITTEN.findall(meminfo)) << 10


def _each(top: int, stop: Stop) -> bool:
    """Sync all files and folders of a tree; False, and nothing done, if there is anything else in it, or too much."""
    with ExitStack() as opened:
        try:
            fds = _opened(top, opened, stop)
        except OSError:  # what is mounted in it, or is gone meanwhile
            return False
        if fds is None:
            return False
        _sync(fds)
    return True


def _opened(top: int, opened: ExitStack, stop: Stop) -> list[int] | None:
    fds: list[int] = []

    def scan(fd: int) -> list[str] | None:
        """Open all that is in a folder and the folder itself; the names of those in it."""
        stop.check()
        folders = []
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif len(fds) < MOST and entry.is_file(follow_symlinks=False):
                    keep(os.open(entry.name, _FILE, dir_fd=fd))
                else:
                    return None
        keep(os.open(".", FOLDER, dir_fd=fd))
        return folders if len(fds) <= MOST else None

    def keep(fd: int) -> None:
        opened.callback(os.close, fd)
        fds.append(fd)

    with Descent(top) as descent:
        pending = [scan(descent.fd)]
        while pending:
            if (folders := pending[-1]) is None:
                return None
            if folders:
                descent.enter(folders.pop())
                pending.append(scan(descent.fd))
                continue
            pending.pop()
            if pending:
                descent.leave()
    return fds


def _sync(fds: Sequence[int]) -> None:
    """Sync open files and folders, all of them under way before the first is waited for."""
    for fd in fds:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            # Only a beginning: what fails now fails below too.
            libc().sync_file_range(ctypes.c_int(fd), ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_WRITE))
    for fd in fds:
        os.fsync(fd)
