"""What the process does that unpacks one layer.

Task (JSON): root, lowers (null for a plain folder), userxattr, devices, sync, max_entries, max_bytes; the tar follows
on descriptor 0. Report: entries, bytes (logical size of all files), warnings; or error and text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from moored.plugins.diff.apply.layer import Layer
from moored.plugins.diff.child import lock_in, open_root
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.syscalls import Syscalls
from moored.plugins.diff.tar.reader import Reader
from moored.plugins.diff.tree import Tree


def work(task: dict[str, Any], syscalls: Syscalls) -> Iterator[dict[str, Any]]:
    """Apply the archive on descriptor 0 and read it to its end; yield the report, then have the disk begin with it."""
    with ExitStack() as opened:

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
        layer = Layer(
            Tree(root, syscalls), syscalls, lowers=lowers, userxattr=task["userxattr"], devices=task["devices"]
        )
        reader = Reader(lambda size: os.read(0, size), max_entries=task["max_entries"], max_bytes=task["max_bytes"])
        layer.apply(reader)
        reader.drain()
        if task["sync"]:
            syscalls.sync_file_system(root)
    yield {"entries": reader.entries, "bytes": reader.bytes, "warnings": layer.warnings}
    layer.write_out()
