"""Undoes the compression that a stream begins with: gzip, zstd or none, told by its first bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import partial
from typing import Final, Protocol

from moored.kernel.errors import MooredError, Unknown

GZIP: Final = b"\x1f\x8b\x08"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
ENOUGH: Final = 8
MAX_PIECE: Final = 1 << 20
MAX_WINDOW: Final = 128 << 20
_GATHERED: Final = 512 << 10
"""Bytes that are decoded by one hand-over to a thread; chunks of streams are much smaller."""
_ZSTD_SLICE: Final = 2 << 10
"""Bytes given to zstd at a time: they may become 32,768 times as many, all at once."""


def kind_of(start: bytes) -> str:
    """Tell by the first bytes: `gzip`, `zstd`, or empty for what is not compressed in a way that is known."""
    if start.startswith(GZIP):
        return "gzip"
    skippable = len(start) >= ENOUGH and start[0] & 0xF0 == 0x50 and start[1:4] == b"\x2a\x4d\x18"
    return "zstd" if start.startswith(ZSTD) or skippable else ""


async def decompressed(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Give the plain bytes of a stream. Raises Unknown for one that is broken or cut."""
    source = gathered(chunks)
    first = await anext(source, b"")
    while 0 < len(first) < ENOUGH and (more := await anext(source, b"")):
        first += more
    decoder = _DECODERS[kind_of(first)]()
    while first:
        if isinstance(decoder, _Plain):
            yield first
        else:
            pieces = decoder.feed(first)
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield piece
        first = await anext(source, b"")
    decoder.finish()


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Give the same bytes in larger pieces; all that came before an error is given first."""
    waiting: list[bytes] = []
    size = 0
    broken: MooredError | None = None
    try:
        async for chunk in chunks:
            waiting.append(chunk)
            size += len(chunk)
            if size >= _GATHERED:
                yield b"".join(waiting)
                waiting, size = [], 0
    except MooredError as error:
        broken = error
    if waiting:
        yield b"".join(waiting)
    if broken is not None:
        raise broken


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what becomes of further bytes, no piece of it empty."""

    def finish(self) -> None:
        """Raise Unknown if the end came too early."""


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class _Gzip:
    def __init__(self) -> None:
        from isal import igzip_lib

        self._new = partial(igzip_lib.IgzipDecompressor, igzip_lib.DECOMP_GZIP)
        self._error = igzip_lib.IsalError
        self._member = self._new()
        self._within = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while True:
                if not self._within:
                    if not data:
                        return
                    self._member, self._within = self._new(), True
                if piece := self._member.decompress(data, MAX_PIECE):
                    yield piece
                if self._member.eof:
                    data, self._within = self._member.unused_data, False
                elif self._member.needs_input:
                    return
                else:
                    data = b""
        except (self._error, ValueError, EOFError) as error:  # type: ignore[misc]
            raise Unknown(f"gzip: {str(error).lower()}") from error

    def finish(self) -> None:
        if self._within:
            raise Unknown("gzip: unexpected end of the stream")


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._error = zstandard.ZstdError
        self._frame = self._context.decompressobj()
        self._within = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE):
            rest = data[start : start + _ZSTD_SLICE]
            while rest:
                if not self._within:
                    self._frame, self._within = self._context.decompressobj(), True
                try:
                    piece = self._frame.decompress(rest)
                except self._error as error:
                    raise Unknown(f"zstd: {str(error).lower()}") from error
                if piece:
                    yield piece
                rest = b""
                if self._frame.eof:
                    rest, self._within = self._frame.unused_data, False

    def finish(self) -> None:
        if self._within:
            raise Unknown("zstd: unexpected end of the stream")


_DECODERS: Final[dict[str, type[_Decoder]]] = {"": _Plain, "gzip": _Gzip, "zstd": _Zstd}
