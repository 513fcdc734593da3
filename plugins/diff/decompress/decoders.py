"""The decoders: bytes in, pieces of at most 1 MiB out (plain ones as they come), errors for what is cut or broken.

Which one it is follows from the first bytes (`Detected`), as containerd does it; what is none of these is plain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

GZIP_MAGIC: Final = b"\x1f\x8b\x08"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
_ENOUGH: Final = 8


class Decoder(Protocol):
    """A stream being decoded; one thread at a time."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what becomes of further bytes; raises Unknown for broken ones. To be used up before the next call."""

    def finish(self) -> Iterator[bytes]:
        """Give what is left at the end; raises Unknown if that came too early."""


class Plain:
    """Gives what it gets."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give the data."""
        if data:
            yield data

    def finish(self) -> Iterator[bytes]:
        """Give nothing."""
        return iter(())


class Detected:
    """Decides by the first bytes; an empty stream is plain."""

    def __init__(self) -> None:
        self._start = b""
        self._decoder: Decoder | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode, once there is enough to tell."""
        if self._decoder is None:
            self._start += data
            if len(self._start) < _ENOUGH:
                return iter(())
            data = self._begin()
        assert self._decoder is not None
        return self._decoder.feed(data)

    def finish(self) -> Iterator[bytes]:
        """Decode what was too short to tell, and end."""
        if self._decoder is None:
            start = self._begin()
            assert self._decoder is not None
            yield from self._decoder.feed(start)
        yield from self._decoder.finish()

    def _begin(self) -> bytes:
        start, self._start = self._start, b""
        if start.startswith(GZIP_MAGIC):
            from moored.plugins.diff.decompress.gzip import Gzip

            self._decoder = Gzip()
        elif start.startswith(ZSTD_MAGIC) or (len(start) >= _ENOUGH and _is_skippable(start)):
            from moored.plugins.diff.decompress.zstd import Zstd

            self._decoder = Zstd()
        else:
            self._decoder = Plain()
        return start


def _is_skippable(start: bytes) -> bool:
    return start[0] & 0xF0 == 0x50 and start[1:4] == SKIPPABLE_MAGIC
