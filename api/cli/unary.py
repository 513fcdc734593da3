"""Calls with one message each way, made without gRPC's library, which takes longer to import than a daemon to answer.

Everything of HTTP/2 that a well answered call has is understood, and nothing else: what an error says stands in
compressed headers, so that a call that is not answered well is to be made again with the library, which can tell.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final, Self

MAX_ANSWER: Final = 16 << 20
"""Bytes; the same limit that daemons of this API have."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW = 0, 1, 4, 6, 8
_ACK = _END_STREAM = 1
_END_HEADERS: Final = 4
_PADDED: Final = 8
_MAX_WINDOW: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = 65535
_MAX_FRAME: Final = 16384
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
        settings = struct.pack(">HIHI", 1, 0, 4, _MAX_WINDOW)
        window = struct.pack(">I", _MAX_WINDOW - _FIRST_WINDOW)
        try:
            self._socket.connect(address)
            self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, window))
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
        headers = _frame(_HEADERS, _END_HEADERS, number, _headers(method, self._namespace))
        assert len(message) < _MAX_FRAME - 5
        try:
            self._socket.sendall(headers + _frame(_DATA, _END_STREAM, number, _message(message)))
            return self._answer(number, time.monotonic() + self._seconds)
        except TimeoutError:
            raise
        except OSError as error:
            raise NotAnswered from error

    def _answer(self, number: int, until: float) -> bytes:
        received = bytearray()
        while True:
            kind, flags, stream, payload = self._receive(until)
            if kind == _SETTINGS and not flags & _ACK:
                self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._socket.sendall(_frame(_PING, _ACK, 0, payload))
            elif stream == number:
                if kind not in (_DATA, _HEADERS) or flags & _PADDED:
                    raise NotAnswered
                received += payload if kind == _DATA else b""
                if len(received) > MAX_ANSWER + 5:
                    raise NotAnswered
                if flags & _END_STREAM:
                    return _read(received)

    def _receive(self, until: float) -> tuple[int, int, int, bytes]:
        """Give the next frame: kind, flags, stream, payload."""
        buffer = self._in
        self._fill(9, until)
        size = int.from_bytes(buffer[:3], "big")
        if size > _MAX_FRAME:
            raise NotAnswered
        self._fill(9 + size, until)
        kind, flags = buffer[3], buffer[4]
        stream = int.from_bytes(buffer[5:9], "big") & _MAX_WINDOW
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


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def _headers(method: str, namespace: str) -> bytes:
    """Give the headers of a call, as they are: neither compressed nor to be remembered (RFC 7541 6.2.2)."""
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers", "containerd-namespace": namespace}
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    """A length of 7 bits and more (RFC 7541 5.1), and the text."""
    data = text.encode()
    length, rest = bytearray((min(len(data), 127),)), len(data) - 127
    while rest >= 0:
        length.append(rest & 127 | (128 if rest > 127 else 0))
        rest = rest >> 7 if rest > 127 else -1
    return bytes(length) + data
