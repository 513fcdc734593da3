"""Takes a layer's bytes as stored, and passes on its tar: decompressed, counted, and hashed on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from moored.kernel.errors import ResourceExhausted
from moored.kernel.ports.content import Digest
from moored.plugins.diff.decompress.decoders import Decoder

Write = Callable[[bytes], None]


class Pump:
    """A stream on its way; all calls block and belong to one thread at a time.

    Errors: those of the decoder, ResourceExhausted over max_bytes of output, and those of `write`.
    """

    def __init__(self, decoder: Decoder, write: Write, *, max_bytes: int, algorithm: str = "sha256") -> None:
        self._decoder = decoder
        self._write = write
        self._max_bytes = max_bytes
        self._algorithm = algorithm
        self._stored = hashlib.new(algorithm, usedforsecurity=True)
        self._tar = hashlib.sha256()
        self.stored_size = 0
        self.size = 0

    @property
    def stored_digest(self) -> Digest:
        """Of the bytes that were fed."""
        return Digest(f"{self._algorithm}:{self._stored.hexdigest()}")

    @property
    def digest(self) -> Digest:
        """Of the bytes that were passed on."""
        return Digest(f"sha256:{self._tar.hexdigest()}")

    def feed(self, data: bytes) -> None:
        """Pass on what the data decompresses to."""
        self._stored.update(data)
        self.stored_size += len(data)
        self._pass(self._decoder.feed(data))

    def finish(self) -> None:
        """Pass on the rest; an error if it ended too early."""
        self._pass(self._decoder.finish())

    def last(self, data: bytes) -> Iterator[bytes]:
        """Give what the data decompresses to, and the rest, to be passed on by the caller; it must be used up."""
        self._stored.update(data)
        self.stored_size += len(data)
        yield from self._counted(self._decoder.feed(data))
        yield from self._counted(self._decoder.finish())

    def _pass(self, pieces: Iterator[bytes]) -> None:
        for piece in self._counted(pieces):
            self._write(piece)

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.size += len(piece)
            if self.size > self._max_bytes:
                raise ResourceExhausted(f"the layer has over {self._max_bytes} bytes uncompressed")
            self._tar.update(piece)
            yield piece
