"""Calls with one message each way, made without gRPC's library, which takes longer to import than a daemon to answer.

Everything of HTTP/2 that a well answered call has is understood, and nothing else: what an error says stands in
compressed headers, so that a call that is not answered well is to be made again with the library, which can tell.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final, Self

from moored.api import http2

MAX_ANSWER: Final = 16 << 20
"""Bytes; the same limit that daemons of this API have."""

_READ: Final = 1 << 18


class NotAnswered(Exception):
    """There was no good answer; why is for the library to find out."""


class Link:
    """One connection to a daemon's unix socket. Used as a context manager; one call at a time.

    seconds   for each call
    Raises NotAnswered where nobody answers well, TimeoutError for an answer that takes longer.
    """

    def __init__(self, address: str, namespace: str, seconds: float) -> None:
        self._seconds = seconds
        self._namespace = namespace
        self._next = 1
        self._in = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        # What comes is never held back, and no header is one that was sent before.
        greeting = http2.settings({http2.HEADER_TABLE_SIZE: 0, http2.INITIAL_WINDOW: http2.MAX_WINDOW})
        greeting += http2.window_update(0, http2.MAX_WINDOW - http2.FIRST_WINDOW)
        try:
            self._socket.connect(address)
            self._socket.sendall(http2.PREFACE + greeting)
        except OSError as error:
            self._socket.close()
            raise NotAnswered from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, message: bytes = b"") -> bytes:
        """Make a call (`/package.Service/Method`) with a message below 16 KiB, and give the answer's bytes."""
        number, self._next = self._next, self._next + 2
        headers = http2.header_frames(number, _headers(method, self._namespace), end=False)
        assert len(message) < http2.MAX_FRAME - 5
        try:
            self._socket.sendall(headers + http2.frame(http2.DATA, http2.END_STREAM, number, _message(message)))
            return self._answer(number, time.monotonic() + self._seconds)
        except TimeoutError:
            raise
        except OSError as error:
            raise NotAnswered from error

    def _answer(self, number: int, until: float) -> bytes:
        received = bytearray()
        while True:
            kind, flags, stream, payload = self._receive(until)
            if kind == http2.SETTINGS and not flags & http2.ACK:
                self._socket.sendall(http2.SETTINGS_ACK)
            elif kind == http2.PING and not flags & http2.ACK:
                self._socket.sendall(http2.frame(http2.PING, http2.ACK, 0, payload))
            elif stream == number:
                if kind not in (http2.DATA, http2.HEADERS) or flags & http2.PADDED:
                    raise NotAnswered
                received += payload if kind == http2.DATA else b""
                if len(received) > MAX_ANSWER + 5:
                    raise NotAnswered
                if flags & http2.END_STREAM:
                    return _read(received)

    def _receive(self, until: float) -> tuple[int, int, int, bytes]:
        """Give the next frame: kind, flags, stream, payload."""
        buffer = self._in
        self._fill(9, until)
        size = int.from_bytes(buffer[:3], "big")
        if size > http2.MAX_FRAME:
            raise NotAnswered
        self._fill(9 + size, until)
        kind, flags = buffer[3], buffer[4]
        stream = int.from_bytes(buffer[5:9], "big") & http2.MAX_WINDOW
        payload = bytes(buffer[9 : 9 + size])
        del buffer[: 9 + size]
        return kind, flags, stream, payload

    def _fill(self, size: int, until: float) -> None:
        while len(self._in) < size:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(_READ)
            if not data:
                raise NotAnswered
            self._in += data


def _read(received: bytearray) -> bytes:
    """Take the one message, neither compressed nor cut, out of its frame; a call that failed has none."""
    if len(received) < 5 or received[0] or int.from_bytes(received[1:5], "big") != len(received) - 5:
        raise NotAnswered
    return bytes(received[5:])


def _message(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def _headers(method: str, namespace: str) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers", "containerd-namespace": namespace}
    return http2.literal((name, value.encode()) for name, value in fields.items())
