"""Frames of ttrpc: bytes in, frames out and back, without I/O; imports neither asyncio nor protobuf.

A frame is a header of ten bytes (data length, stream id, type, flags; big endian) and the data. The framing carries no
checksum and no magic, so any bytes are frames to somebody: the decoder never fails, and what it holds is bounded by
`MAX_DATA` whatever arrives. Source: `contracts/ttrpc.md`, Frame.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from moored.kernel.errors import InvalidArgument, ResourceExhausted

HEADER: Final = struct.Struct(">IIBB")
"""Data length, stream id, type, flags."""
HEADER_SIZE: Final = 10
"""Bytes of a header."""
MAX_DATA: Final = 4 << 20
"""Most bytes of data in one frame; exactly this many are allowed."""
MAX_STREAM_ID: Final = 0xFFFFFFFF
"""Highest id the header can carry; a connection that came so far opens no more streams."""

REQUEST: Final = 1
"""Frame type: a client opens a stream."""
RESPONSE: Final = 2
"""Frame type: a server's answer, the last frame of its stream."""
DATA: Final = 3
"""Frame type: one message of a stream."""

REMOTE_CLOSED: Final = 0x1
"""Flag: the sender sends no more on this stream."""
REMOTE_OPEN: Final = 0x2
"""Flag: the sender will send more on this stream."""
NO_DATA: Final = 0x4
"""Flag: this frame is no message. A data frame of no bytes without it is an empty message."""
END: Final = REMOTE_CLOSED | NO_DATA
"""Flags of the empty data frame that ends the sender's half of a stream."""

NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"
"""Metadata key of the namespace; its first value counts."""
CLOSED: Final = "ttrpc: closed"
"""Text of the local error when the connection is gone; callers of shims compare with it."""
DEADLINE: Final = "context deadline exceeded"
"""Text of both sides' errors when a call's time ran out."""

_HOLD = 16 << 10  # shorter pieces are copied together, so that a frame sent byte by byte costs its bytes and no more


class Frame(NamedTuple):
    """One frame; kind is the type byte as it came, known or not."""

    stream_id: int
    kind: int
    flags: int
    data: bytes = b""


class Oversize(NamedTuple):
    """A frame longer than MAX_DATA was announced, and its data has been dropped; length is what it claimed in bytes."""

    stream_id: int
    length: int


Event = Frame | Oversize
"""What a decoder yields."""


def oversize_text(length: int) -> str:
    """The wire's text for a message of length bytes that is too long."""
    return f"message length {length} exceed maximum message size of {MAX_DATA}"


def encode(frame: Frame) -> bytes:
    """The frame's bytes.

    Errors: ResourceExhausted if the data is longer than MAX_DATA; InvalidArgument if id, type or flags do not fit.
    """
    stream_id, kind, flags, data = frame
    length = len(data)
    if length > MAX_DATA:
        raise ResourceExhausted(oversize_text(length), bare=True)
    try:
        header = HEADER.pack(length, stream_id, kind, flags)
    except struct.error:
        raise InvalidArgument(
            f"frame header ({stream_id}, {kind}, {flags}) does not fit, wanted 32, 8 and 8 bit numbers"
        ) from None
    return header + data if length else header


class Decoder:
    """Turns bytes, split anywhere, into frames.

    `feed` gives it bytes and iteration takes the events out; iteration stops when more bytes are needed and may be
    taken up again after the next feed. It may also be left in the middle: what is unread stays. A frame's data is
    copied once (twice where it arrives in pieces under 16 KiB). An oversize frame is told after the last of its data
    is dropped.

    Holds at most one frame's data and the bytes fed and not yet taken. Raises nothing.
    """

    __slots__ = ("_at", "_chunk", "_flags", "_kind", "_length", "_parts", "_stream_id", "_tail", "_wanted")

    def __init__(self) -> None:
        self._chunk = b""  # the bytes last fed, or a piece of a header
        self._at = 0  # how much of them is read
        self._length = -1  # of the frame under way; -1 while its header is not read
        self._stream_id = self._kind = self._flags = 0
        self._wanted = 0  # bytes of its data that have not come
        self._parts: list[memoryview | bytearray] = []
        self._tail: bytearray | None = None  # the last part, while it may grow

    @property
    def held(self) -> int:
        """Bytes kept at this moment."""
        return len(self._chunk) - self._at + sum(len(part) for part in self._parts)

    @property
    def partial(self) -> bool:
        """Whether the bytes so far end inside of a frame."""
        return self._length >= 0 or self._at < len(self._chunk)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        rest = len(self._chunk) - self._at
        self._chunk = self._chunk[self._at :] + data if rest else data
        self._at = 0

    def __iter__(self) -> Decoder:
        return self

    def __next__(self) -> Event:
        if self._length < 0:
            if len(self._chunk) - self._at < HEADER_SIZE:
                raise StopIteration
            length, self._stream_id, self._kind, self._flags = HEADER.unpack_from(self._chunk, self._at)
            start = self._at + HEADER_SIZE
            end = start + length
            if length <= MAX_DATA and end <= len(self._chunk):
                self._at = end
                return Frame(self._stream_id, self._kind, self._flags, self._chunk[start:end])
            self._at = start
            self._length = self._wanted = length
        self._take()
        if self._wanted:
            raise StopIteration
        return self._finish()

    def _take(self) -> None:
        """Move what is there of the data under way out of the chunk."""
        have = len(self._chunk) - self._at
        size = min(self._wanted, have)
        if size and self._length <= MAX_DATA:
            self._keep(memoryview(self._chunk)[self._at : self._at + size])
        self._wanted -= size
        if size == have:
            self._chunk, self._at = b"", 0
        else:
            self._at += size

    def _keep(self, piece: memoryview) -> None:
        if len(piece) >= _HOLD:
            self._parts.append(piece)
            self._tail = None
        elif self._tail is not None:
            self._tail += piece
        else:
            self._tail = bytearray(piece)
            self._parts.append(self._tail)

    def _finish(self) -> Event:
        length, self._length = self._length, -1
        if length > MAX_DATA:
            return Oversize(self._stream_id, length)
        data = b"".join(self._parts)
        self._parts.clear()
        self._tail = None
        return Frame(self._stream_id, self._kind, self._flags, data)
