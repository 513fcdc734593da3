"""What the process does that unpacks one layer.

Task (JSON): root, lowers (null for a plain folder), userxattr, devices, sync, max_entries, max_bytes; the tar follows
on descriptor 0. With `stored` (fd, magic, max_bytes) it is in that file, plain or to be decompressed.
Report: entries, bytes (logical size of all files), warnings, of a stored one also digest and size; or error and text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from moored.plugins.diff.apply.layer import Layer
from moored.plugins.diff.child import lock_in, open_root
from moored.plugins.diff.decompress import gzip as _gzip  # noqa: F401 - decoders are loaded before the root changes
from moored.plugins.diff.decompress import zstd as _zstd  # noqa: F401
from moored.plugins.diff.decompress.decoders import Detected, Plain
from moored.plugins.diff.decompress.pump import Pump
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.stored import pieces_of
from moored.plugins.diff.syscalls import Syscalls
from moored.plugins.diff.tar.reader import Reader
from moored.plugins.diff.tree import Tree

# the first use of a hash may look for files, which must not be a stranger's
hashlib.sha256(b"")


class _Pieces:
    """A stored layer's archive, read in pieces from its file."""

    def __init__(self, pump: Pump, fd: int) -> None:
        self._pieces = self._given(pump, fd)
        self._left = b""

    def read(self, size: int) -> bytes:
        """Give up to that many bytes, none at the end."""
        data = self._left or next(self._pieces, b"")
        self._left = data[size:]
        return data[:size] if self._left else data

    @staticmethod
    def _given(pump: Pump, fd: int) -> Iterator[bytes]:
        for data in pieces_of(fd):
            yield from pump.feed(data)
        yield from pump.finish()


def _pump(stored: dict[str, Any]) -> Pump:
    decoder = Detected() if stored["magic"] else Plain()
    return Pump(decoder, max_bytes=stored["max_bytes"])


def work(task: dict[str, Any], syscalls: Syscalls) -> Iterator[dict[str, Any]]:
    """Apply the archive on descriptor 0 and read it to its end; yield the report, then have the disk begin with it."""
    stored = task.get("stored")
    with ExitStack() as opened:
        if stored is not None:
            opened.callback(os.close, stored["fd"])

        def opened_root(path: str) -> int:
            fd = open_root(path)
            opened.callback(os.close, fd)
            return fd

        try:
            root = opened_root(task["root"])
            lowers = None
            if task["lowers"] is not None:
                lowers = [Tree(opened_root(path), syscalls) for path in task["lowers"]]
        except OSError as fault:
            raise text_of(fault, "cannot open the folder of a mount") from fault
        lock_in(root)
        pump = None if stored is None else _pump(stored)
        layer = Layer(
            Tree(root, syscalls), syscalls, lowers=lowers, userxattr=task["userxattr"], devices=task["devices"]
        )
        read = _Pieces(pump, stored["fd"]).read if stored and pump else lambda size: os.read(0, size)
        reader = Reader(read, max_entries=task["max_entries"], max_bytes=task["max_bytes"])
        layer.apply(reader)
        reader.drain()
        if task["sync"]:
            syscalls.sync_file_system(root)
    report = {"entries": reader.entries, "bytes": reader.bytes, "warnings": layer.warnings}
    if pump is not None:
        report |= {"digest": pump.digest, "size": pump.size}
    yield report
    layer.write_out()
