"""What the process does that makes a layer: it writes the tar to descriptor 1.

Task (JSON): lower, upper, shortcut (null or the overlay's upper folder), latest (nanoseconds; later times become it).
Report: entries; or error and text.

Times are whole seconds; of extended attributes only capabilities are kept; sockets are left out; deleted names become
`.wh.NAME` with time and mode 0; the folders above a change are part of the layer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from moored.kernel.errors import Unknown
from moored.plugins.diff.child import lock_in, open_root
from moored.plugins.diff.compare.changes import CHUNK, DELETED, SAME, Change, capability, changes, open_file
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.syscalls import Syscalls
from moored.plugins.diff.tar.header import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    shown,
)
from moored.plugins.diff.tar.writer import Writer
from moored.plugins.diff.tree import OPEN_FOLDER

BUFFER = 256 << 10
_SECOND = 1_000_000_000
_KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFIFO: FIFO,
}


class Output:
    """Gathers small writes to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._parts: list[bytes | memoryview] = []
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all, some of it later."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        data = memoryview(b"".join(self._parts))
        self._parts, self._size = [], 0
        while data:
            data = data[os.write(self._fd, data) :]


class LayerMaker:
    """Turns changes into entries of an archive."""

    def __init__(self, writer: Writer, upper: int, latest: int | None) -> None:
        self._writer = writer
        self._upper = upper
        self._latest = latest
        self._folders: set[bytes] = {b""}
        # by inode: the name that was written, or names that are to follow it
        self._written: dict[tuple[int, int], bytes] = {}
        self._waiting: dict[tuple[int, int], list[bytes]] = {}
        self.entries = 0

    def add(self, change: Change) -> None:
        """Write one change, with the folders above it that are not there yet."""
        found = change.found
        if change.kind == DELETED or found is None:
            above, _, name = change.path.rpartition(b"/")
            self._add(Entry((above + b"/" if above else b"") + b".wh." + name))
            return
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return
        entry = self._entry(change.path, kind, found)
        if kind == DIRECTORY:
            self._add(entry)
            return
        if value := capability(change.folder, change.name, found):
            # each name of a file carries it: who unpacks changes the owner at each, which takes it away
            entry.xattrs = {b"security.capability": value}
        inode = (found.st_dev, found.st_ino) if found.st_nlink > 1 else None
        if inode is not None and inode in self._written:
            self._add_link(entry, self._written[inode])
        elif inode is not None and change.kind == SAME:
            self._waiting.setdefault(inode, []).append(change.path)
        else:
            self._add_file(entry, change, found)
            if inode is not None:
                self._written[inode] = change.path
                for path in self._waiting.pop(inode, ()):
                    further = self._entry(path, kind, found)
                    further.xattrs = entry.xattrs
                    self._add_link(further, change.path)

    def _entry(self, path: bytes, kind: bytes, found: os.stat_result) -> Entry:
        entry = Entry(path + b"/" if kind == DIRECTORY else path, kind)
        entry.mode = stat.S_IMODE(found.st_mode)
        entry.uid, entry.gid = found.st_uid, found.st_gid
        mtime = found.st_mtime_ns if self._latest is None else min(found.st_mtime_ns, self._latest)
        entry.mtime = mtime // _SECOND * _SECOND
        if kind == REGULAR:
            entry.size = found.st_size
        elif kind in {CHAR, BLOCK_DEVICE}:
            entry.major, entry.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        return entry

    def _add_file(self, entry: Entry, change: Change, found: os.stat_result) -> None:
        if entry.type == SYMLINK:
            entry.link = os.readlink(change.name, dir_fd=change.folder)
        self._add(entry)
        if entry.size:
            self._copy(entry, change)

    def _copy(self, entry: Entry, change: Change) -> None:
        fd = open_file(change.folder, change.name)
        left = entry.size
        try:
            while left and (data := os.read(fd, min(left, CHUNK))):
                self._writer.data(data)
                left -= len(data)
        finally:
            os.close(fd)
        if left:
            raise Unknown(f"{shown(change.path)} became {left} bytes shorter while it was read")

    def _add_link(self, entry: Entry, target: bytes) -> None:
        entry.type, entry.link, entry.size = HARD_LINK, target, 0
        self._add(entry)

    def _add(self, entry: Entry) -> None:
        parts = entry.name.rstrip(b"/").split(b"/")
        for count in range(1, len(parts)):
            path = b"/".join(parts[:count])
            if path not in self._folders:
                self._folders.add(path)
                self._write(self._entry(path, DIRECTORY, self._stat(parts[:count])))
        if entry.type == DIRECTORY:
            self._folders.add(b"/".join(parts))
        self._write(entry)

    def _write(self, entry: Entry) -> None:
        self.entries += 1
        self._writer.add(entry)

    def _stat(self, parts: list[bytes]) -> os.stat_result:
        here = os.dup(self._upper)
        try:
            for part in parts:
                below = os.open(part, OPEN_FOLDER, dir_fd=here)
                os.close(here)
                here = below
            return os.fstat(here)
        finally:
            os.close(here)


def work(task: dict[str, Any], syscalls: Syscalls) -> Iterator[dict[str, Any]]:
    """Write the archive to descriptor 1; yield the report."""
    try:
        lower, upper = open_root(task["lower"]), open_root(task["upper"])
        shortcut = -1 if task["shortcut"] is None else open_root(task["shortcut"])
    except OSError as fault:
        raise text_of(fault, "cannot open the folder of a mount") from fault
    lock_in(upper)
    output = Output(1)
    writer = Writer(output.write)
    maker = LayerMaker(writer, upper, task["latest"])
    for change in changes(lower, upper, shortcut):
        try:
            maker.add(change)
        except OSError as fault:
            raise text_of(fault, f"cannot read {shown(change.path)}") from fault
    writer.close()
    output.flush()
    yield {"entries": maker.entries}
