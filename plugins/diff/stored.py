"""A stored layer's file, read by the daemon and by the process that unpacks it, each by itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from moored.kernel.errors import DataLoss

PIECE = 256 << 10
"""Bytes that are read at a time."""


def pieces_of(file: int) -> Iterator[bytes]:
    """Give all bytes of an open file, wherever it stands; blocks. Raises DataLoss where they cannot be read."""
    at = 0
    try:
        while data := os.pread(file, PIECE, at):
            at += len(data)
            yield data
    except OSError as fault:
        raise DataLoss(f"the stored layer cannot be read: {os.strerror(fault.errno or 0).lower()}") from fault


def digest_of(file: int, algorithm: str) -> str:
    """Hash an open file; blocks, and raises as `pieces_of`."""
    found = hashlib.new(algorithm, usedforsecurity=True)
    for data in pieces_of(file):
        found.update(data)
    return f"{algorithm}:{found.hexdigest()}"
