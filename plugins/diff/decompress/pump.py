"""Takes a layer's bytes as stored, and gives its tar: decompressed, counted and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from moored.kernel.errors import ResourceExhausted
from moored.plugins.diff.decompress.decoders import Decoder


class Pump:
    """A stream on its way; one thread at a time.

    algorithm   of a hash of the stored bytes too; None for no such hash

    Errors: those of the decoder, and ResourceExhausted over max_bytes of output.
    """

    def __init__(self, decoder: Decoder, *, max_bytes: int, algorithm: str | None = None) -> None:
        self._decoder = decoder
        self._max_bytes = max_bytes
        self._algorithm = algorithm
        self._stored = None if algorithm is None else hashlib.new(algorithm, usedforsecurity=True)
        self._tar = hashlib.sha256()
        self.size = 0

    @property
    def stored_digest(self) -> str:
        """Of the bytes that were fed, if they are hashed."""
        assert self._stored is not None
        return f"{self._algorithm}:{self._stored.hexdigest()}"

    @property
    def digest(self) -> str:
        """Of the bytes that were given."""
        return f"sha256:{self._tar.hexdigest()}"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what the data decompresses to; to be used up before the next call."""
        if self._stored is not None:
            self._stored.update(data)
        yield from self._counted(self._decoder.feed(data))

    def finish(self) -> Iterator[bytes]:
        """Give the rest; an error if it ended too early."""
        yield from self._counted(self._decoder.finish())

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.size += len(piece)
            if self.size > self._max_bytes:
                raise ResourceExhausted(f"the layer has over {self._max_bytes} bytes uncompressed")
            self._tar.update(piece)
            yield piece
