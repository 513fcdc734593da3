"""A stored layer's file: all of its bytes, wherever its descriptor stands, and what is said of one that fails."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from moored.kernel.conformance import refuses
from moored.kernel.errors import DataLoss
from moored.plugins.diff.stored import PIECE, digest_of, pieces_of


def test_whole_file_is_read_and_hashed(tmp_path: Path) -> None:
    for size in (0, 1, PIECE, 2 * PIECE + 1):
        data = os.urandom(size)
        (tmp_path / "blob").write_bytes(data)
        with (tmp_path / "blob").open("rb", buffering=0) as file:
            file.seek(size // 2)
            pieces = list(pieces_of(file.fileno()))
            assert b"".join(pieces) == data
            assert max(map(len, pieces), default=0) <= PIECE
            for algorithm in ("sha256", "sha512"):
                assert digest_of(file.fileno(), algorithm) == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
            assert file.tell() == size // 2


def test_file_that_cannot_be_read_is_data_loss(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        refuses(DataLoss, lambda: digest_of(folder, "sha256"), "the stored layer cannot be read: is a directory")
    finally:
        os.close(folder)
