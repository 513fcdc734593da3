"""zstd (RFC 8878) with any number of frames, skippable ones too.

The frames' structure is read here, for three things that the library leaves open: an end in the middle is seen, the
output of one call is bounded (it gets whole blocks, each at most 128 KiB large), and a window or dictionary that is
too much to ask is refused before memory is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import zstandard

from moored.kernel.errors import ResourceExhausted, Unknown

MAX_WINDOW: Final = 128 << 20
MAX_BLOCK: Final = 128 << 10
BLOCKS_AT_ONCE: Final = 8

_MAGIC: Final = 0xFD2FB528
_SKIPPABLE: Final = 0x184D2A50
_DICTIONARY_BYTES: Final = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES: Final = (0, 2, 4, 8)
_RLE, _RESERVED = 1, 3


class Zstd:
    """A zstd stream; checks the frames' checksums where they have any."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._has_checksum = False
        self._last_block = False
        self._buffer = b""
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what the bytes decompress to."""
        self._buffer = self._buffer + data if self._buffer else data
        place = 0
        try:
            while True:
                size = self._step(place)
                if not size:
                    break
                part = self._buffer[place : place + size]
                place += size
                if self._frame is None:
                    continue
                if piece := self._frame.decompress(part):
                    yield piece
                if self._last_block:
                    self._frame = None
        except zstandard.ZstdError as fault:
            raise Unknown(f"zstd: {str(fault).removeprefix('zstd decompressor error: ').lower()}") from fault
        finally:
            self._buffer = self._buffer[place:]

    def finish(self) -> Iterator[bytes]:
        """End; raises Unknown inside of a frame."""
        if self._frame is not None or self._skip or self._buffer:
            raise Unknown("zstd: unexpected end of the stream")
        return iter(())

    def _step(self, place: int) -> int:
        """How many bytes to take next, 0 if they are not all there.

        They are part of what is skipped, a frame's header (of which `_frame` is made), or blocks.
        """
        have = len(self._buffer) - place
        if self._skip:
            taken = min(self._skip, have)
            self._skip -= taken
            return taken
        if self._frame is not None:
            return self._blocks(place)
        if have < 4:
            return 0
        magic = int.from_bytes(self._buffer[place : place + 4], "little")
        if magic & 0xFFFFFFF0 == _SKIPPABLE:
            if have < 8:
                return 0
            self._skip = int.from_bytes(self._buffer[place + 4 : place + 8], "little")
            return 8
        if magic != _MAGIC:
            raise Unknown("zstd: magic number mismatch")
        return self._header(place, have)

    def _header(self, place: int, have: int) -> int:
        if have < 6:
            return 0
        descriptor = self._buffer[place + 4]
        single = descriptor & 0x20
        content_size_bytes = _CONTENT_SIZE_BYTES[descriptor >> 6] or (1 if single else 0)
        dictionary_bytes = _DICTIONARY_BYTES[descriptor & 3]
        window_bytes = 0 if single else 1
        size = 5 + window_bytes + dictionary_bytes + content_size_bytes
        if have < size:
            return 0
        start = place + 5 + window_bytes
        if single:
            window = int.from_bytes(self._buffer[start + dictionary_bytes : place + size], "little")
        else:
            exponent, mantissa = divmod(self._buffer[place + 5], 8)
            window = (1 << (10 + exponent)) // 8 * (8 + mantissa)
        if window > MAX_WINDOW:
            raise ResourceExhausted(f"zstd: a window of {window} bytes, at most {MAX_WINDOW} wanted")
        if any(self._buffer[start : start + dictionary_bytes]):
            raise Unknown("zstd: a dictionary is needed")
        self._frame = self._context.decompressobj()
        self._has_checksum = bool(descriptor & 4)
        self._last_block = False
        return size

    def _blocks(self, place: int) -> int:
        """The size of the whole blocks that are there, up to BLOCKS_AT_ONCE; sets `_last_block`."""
        end = place
        have = len(self._buffer)
        for _ in range(BLOCKS_AT_ONCE):
            if have < end + 3:
                break
            head = int.from_bytes(self._buffer[end : end + 3], "little")
            kind, size = head >> 1 & 3, head >> 3
            if kind == _RESERVED or size > MAX_BLOCK:
                raise Unknown("zstd: corrupted block")
            last = bool(head & 1)
            stop = end + 3 + (1 if kind == _RLE else size) + (4 if last and self._has_checksum else 0)
            if have < stop:
                break
            end = stop
            if last:
                self._last_block = True
                break
        return end - place
