"""Reads an archive as a stream: one entry after the other, each with its data, nothing kept of what has passed.

An archive may end without its two blocks of zeros where an entry ends, as containerd has it; anywhere else its end is
an error. What follows the end is left in the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moored.kernel.errors import ResourceExhausted, Unknown
from moored.plugins.diff.tar import pax, sparse
from moored.plugins.diff.tar.header import (
    BLOCK,
    GLOBAL_PAX,
    GNU_LONG_LINK,
    GNU_LONG_NAME,
    GNU_SPARSE,
    HEADER_ONLY,
    PAX,
    ZEROS,
    Decoder,
    Entry,
    malformed,
)

CHUNK = 1 << 20
MAX_EXTENSION = 1 << 20
"""Bytes of one extended header or long name."""

Read = Callable[[int], bytes]


class Reader:
    """The entries of a stream.

    `read(n)` gives up to n bytes, none at the end. max_entries counts every header, max_bytes the logical sizes;
    ResourceExhausted beyond them. With globals, PAX global headers change the entries behind them; containerd checks
    and then ignores them, so that is the default.
    Errors: Unknown naming the offset for bytes that are no good tar and for an end in the middle.
    """

    def __init__(
        self,
        read: Read,
        *,
        max_entries: int = 10_000_000,
        max_bytes: int = 1 << 50,
        globals_: bool = False,
    ) -> None:
        self._read = read
        self._buffer = b""
        self._place = 0
        self._passed = 0
        self._left = 0
        self._padding = 0
        self._ended = False
        self._decoder = Decoder()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._honours_globals = globals_
        self._globals: dict[bytes, bytes] = {}
        self.entries = 0
        self.bytes = 0

    @property
    def offset(self) -> int:
        """Bytes of the stream that have been used."""
        return self._passed + self._place

    def next(self) -> Entry | None:
        """The next entry, None behind the last one; skips what was not read of the one before."""
        if self._left or self._padding:
            self._skip_entry()
        records: dict[bytes, bytes] | None = None
        long_name = long_link = None
        while (block := self._header_block(started=records is not None or long_name or long_link)) is not None:
            entry = self._decoder.decode(block, self.offset - BLOCK)
            self._count()
            kind = entry.type
            if kind == PAX:
                records = pax.parse(self._extension(entry), entry.offset)
            elif kind == GLOBAL_PAX:
                self._merge_globals(pax.parse(self._extension(entry), entry.offset))
            elif kind == GNU_LONG_NAME:
                long_name = self._extension(entry).partition(b"\0")[0]
            elif kind == GNU_LONG_LINK:
                long_link = self._extension(entry).partition(b"\0")[0]
            else:
                return self._finished(entry, block, records, long_name, long_link)
        return None

    def _finished(
        self,
        entry: Entry,
        block: bytes,
        records: dict[bytes, bytes] | None,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        if self._globals:
            records = {**self._globals, **(records or {})}
        if records:
            pax.merge(entry, records)
        if long_name:
            entry.name = long_name
        if long_link:
            entry.link = long_link
        if entry.type in HEADER_ONLY:
            entry.size = entry.stored = 0
            return entry
        self._padding = -entry.stored % BLOCK
        if entry.type == GNU_SPARSE:
            sparse.from_gnu(entry, block, self._exactly)
        elif records:
            sparse.from_pax(entry, records, self._exactly)
        self._left = entry.stored
        self.bytes += entry.size
        if self.bytes > self._max_bytes:
            raise ResourceExhausted(f"the files of the layer have over {self._max_bytes} bytes")
        return entry

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._max_entries:
            raise ResourceExhausted(f"the layer has over {self._max_entries} entries")

    def _merge_globals(self, records: dict[bytes, bytes]) -> None:
        if self._honours_globals:
            self._globals.update(records)
            self._globals = {key: value for key, value in self._globals.items() if value}

    # --- data ---------------------------------------------------------------------------------------------------------

    def read(self) -> bytes:
        """All stored data of the entry that is left."""
        size = self._left
        data = self._exactly(size)
        self._left = 0
        self._skip_entry()
        return data

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The stored data of the entry that is left, in pieces that are valid until the next one."""
        while self._left:
            here = len(self._buffer) - self._place
            if not here:
                self._refill(min(self._left, CHUNK))
                here = len(self._buffer)
            size = min(here, self._left)
            piece = memoryview(self._buffer)[self._place : self._place + size]
            self._place += size
            self._left -= size
            yield piece
        self._skip_entry()

    def drain(self) -> None:
        """Read the stream to its end and forget what is there."""
        while self._read(CHUNK):
            pass

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _header_block(self, *, started: object) -> bytes | None:
        if self._ended:
            return None
        block = self._take(BLOCK)
        if len(block) == BLOCK and block != ZEROS:
            return block
        if started:
            raise malformed(self.offset - len(block), "the archive ends after an extended header")
        if block and len(block) < BLOCK:
            raise Unknown(f"the archive ends at byte {self.offset}, in the middle of a header")
        self._ended = True
        if block:
            second = self._take(BLOCK)
            if second and len(second) < BLOCK:
                raise Unknown(f"the archive ends at byte {self.offset}, in the middle of a header")
            if second and second != ZEROS:
                raise malformed(self.offset - BLOCK, "it follows a block of zeros")
        return None

    def _extension(self, entry: Entry) -> bytes:
        if entry.size > MAX_EXTENSION:
            raise malformed(entry.offset, f"an extended header of {entry.size} bytes, at most {MAX_EXTENSION} wanted")
        data = self._exactly(entry.size)
        self._padding = -entry.size % BLOCK
        self._skip_entry()
        return data

    def _skip_entry(self) -> None:
        while self._left:
            here = min(len(self._buffer) - self._place, self._left)
            self._place += here
            self._left -= here
            if self._left:
                self._refill(CHUNK)
        if self._padding:
            # the last padding may be missing, then there is no header either
            self._take(self._padding)
            self._padding = 0

    def _exactly(self, size: int) -> bytes:
        data = self._take(size)
        if len(data) < size:
            raise Unknown(f"the archive ends at byte {self.offset}, {size - len(data)} bytes early")
        return data

    def _refill(self, size: int) -> None:
        """Replace a used up buffer."""
        self._passed += len(self._buffer)
        self._place = 0
        self._buffer = self._read(max(size, CHUNK))
        if not self._buffer:
            raise Unknown(f"the archive ends at byte {self.offset}, {self._left} bytes early")

    def _take(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end of the stream."""
        place = self._place
        end = place + size
        buffer = self._buffer
        if end <= len(buffer):
            self._place = end
            return buffer[place:end]
        parts = [buffer[place:]]
        have = len(parts[0])
        self._passed += place
        while have < size and (piece := self._read(CHUNK)):
            parts.append(piece)
            have += len(piece)
        self._buffer = b"".join(parts)
        self._place = min(size, have)
        return self._buffer[: self._place]
