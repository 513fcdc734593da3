"""Messages of gRPC in the data of an HTTP/2 stream: cut out of what comes, decompressed, counted for flow control."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from typing import Final

from moored.kernel.errors import Internal, MooredError, ResourceExhausted, Unimplemented
from moored.plugins.server.grpc.headers import CODINGS

PREFIX: Final = struct.Struct(">BI")
"""Of every message: whether it is compressed, and its length."""

_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


class _Compressed(bytes):
    """A message as it came. It is decompressed when it is read: until then a bomb is as small as it came."""


class Incoming:
    """The messages of one call, in their order.

    coding  how compressed messages are
    limit   bytes of the longest message, also once it is decompressed

    What is unread and was not given back is at most a window of whole messages beside one message of `limit` bytes.
    """

    def __init__(self, coding: str, limit: int) -> None:
        self.begun = False
        """Whether anything has come."""
        self.ended = False
        """Whether the client has said all."""
        self.error: MooredError | None = None
        """What is wrong with what comes after the messages that are there."""
        self._coding = coding
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._partial = bytearray()
        self._owed = 0

    def __len__(self) -> int:
        return len(self._messages)

    def feed(self, data: bytes) -> int:
        """Take what has come; bytes that the client may send again for that, at once."""
        self.begun = True
        if self.error is not None:
            return len(data)
        if not self._partial and len(data) >= PREFIX.size:
            compressed, size = PREFIX.unpack_from(data)
            if not compressed and len(data) == PREFIX.size + size and size <= self._limit:
                self._messages.append(data[PREFIX.size :])
                self._owed += len(data)
                return 0
        self._partial += data
        self._owed += len(data)
        try:
            self._cut()
        except MooredError as error:
            self.error = error
            self._partial.clear()
        return 0 if self._messages else self._paid(self._owed)

    def end(self) -> None:
        """There is nothing more."""
        self.begun = self.ended = True
        if self._partial and self.error is None:
            self.error = Internal("unexpected EOF", bare=True)

    def take(self) -> tuple[bytes, int]:
        """The next message, and the bytes that the client may send again for it. There must be one.

        Raises what is wrong with a compressed one; then there are no more, and `drop` gives its bytes back.
        """
        message = self._messages.popleft()
        if type(message) is _Compressed:
            try:
                found = self._decompressed(message)
            except MooredError as error:
                self.error = error
                self._messages.clear()
                self._partial.clear()
                raise
        else:
            found = message
        return found, self._paid(len(message) + PREFIX.size if self._messages else self._owed)

    def drop(self) -> int:
        """Forget what was not taken; the bytes of it that were not given back."""
        self._messages.clear()
        self._partial.clear()
        return self._paid(self._owed)

    def _paid(self, wanted: int) -> int:
        found = min(wanted, self._owed)
        self._owed -= found
        return found

    def _cut(self) -> None:
        at = 0
        partial = self._partial
        while len(partial) - at >= PREFIX.size:
            compressed, size = PREFIX.unpack_from(partial, at)
            if size > self._limit:
                raise _too_long(size, self._limit)
            end = at + PREFIX.size + size
            if end > len(partial):
                break
            kind = _Compressed if compressed else bytes
            self._messages.append(kind(memoryview(partial)[at + PREFIX.size : end]))
            at = end
        del partial[:at]

    def _decompressed(self, message: bytes) -> bytes:
        bits = _WINDOW_BITS.get(self._coding)
        if bits is None:
            known = self._coding in CODINGS
            text = (
                "grpc: compressed flag set with identity or empty encoding"
                if known
                else f'grpc: Decompressor is not installed for grpc-encoding "{self._coding}"'
            )
            raise (Internal if known else Unimplemented)(text, bare=True)
        inflater, found, fault = zlib.decompressobj(bits), b"", ""
        try:
            found = inflater.decompress(message, self._limit + 1)
        except zlib.error as error:
            fault = str(error)
        if len(found) > self._limit:
            raise _too_long(len(found), self._limit)
        if fault or not inflater.eof:
            text = f"grpc: failed to decompress the received message: {fault or 'unexpected EOF'}"
            raise Internal(text, bare=True)
        return found


def _too_long(size: int, limit: int) -> ResourceExhausted:
    return ResourceExhausted(f"grpc: received message larger than max ({size} vs. {limit})", bare=True)
