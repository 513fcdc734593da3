"""Frames of HTTP/2 (RFC 9113, sections 4 and 6): their numbers, and the bytes of those that are sent.

Headers are sent as they are, neither compressed nor to be remembered (RFC 7541, 6.2.2). This is imported by commands
that must be quick, and imports nothing that takes time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">BHBBI")
"""Of every frame: length (high byte, then two low ones), kind, flags, stream."""
HEAD_BYTES: Final = 9
MAX_FRAME: Final = 16384
"""Bytes of the longest payload that is taken; nothing else is announced."""
MAX_WINDOW: Final = (1 << 31) - 1
FIRST_WINDOW: Final = 65535
"""What each side may send before anything else was said, bytes."""

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITISED: Final = 32

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME_SIZE, MAX_HEADER_LIST = range(1, 7)
"""Settings."""

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

SETTINGS_ACK: Final = b"\0\0\0\4\1\0\0\0\0"
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")


class Broken(Exception):
    """The connection cannot go on: an error code of RFC 9113, section 7, and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """The head of a frame whose payload of `size` bytes follows."""
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def header_frames(stream: int, block: bytes, *, end: bool) -> bytes:
    """A block of headers, in as many frames as it needs."""
    flags = END_STREAM if end else 0
    if len(block) <= MAX_FRAME:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    found = [frame(HEADERS, flags, stream, block[:MAX_FRAME])]
    for at in range(MAX_FRAME, len(block), MAX_FRAME):
        last = at + MAX_FRAME >= len(block)
        found.append(frame(CONTINUATION, END_HEADERS if last else 0, stream, block[at : at + MAX_FRAME]))
    return b"".join(found)


def literal(fields: Iterable[tuple[str, bytes]]) -> bytes:
    """A block of headers; their names are in lower case."""
    return b"".join(b"\0" + _text(name.encode("latin-1")) + _text(value) for name, value in fields)


def _text(data: bytes) -> bytes:
    """A length of 7 bits and more (RFC 7541, 5.1), and the text."""
    length, rest = bytearray((min(len(data), 127),)), len(data) - 127
    while rest >= 0:
        length.append(rest & 127 | (128 if rest > 127 else 0))
        rest = rest >> 7 if rest > 127 else -1
    return bytes(length) + data


def settings(values: dict[int, int]) -> bytes:
    """What this side announces."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))


def read_settings(payload: bytes) -> dict[int, int]:
    """The values of a settings frame; the last of each counts. Raises Broken for those that RFC 9113, 6.5 forbids."""
    if len(payload) % _SETTING.size:
        raise Broken(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
    found: dict[int, int] = dict(_SETTING.iter_unpack(payload))
    if found.get(ENABLE_PUSH, 0) > 1:
        raise Broken(PROTOCOL_ERROR, f"enable_push of {found[ENABLE_PUSH]}")
    if found.get(INITIAL_WINDOW, 0) > MAX_WINDOW:
        raise Broken(FLOW_CONTROL_ERROR, f"initial window of {found[INITIAL_WINDOW]}")
    if not MAX_FRAME <= found.get(MAX_FRAME_SIZE, MAX_FRAME) < 1 << 24:
        raise Broken(PROTOCOL_ERROR, f"frames of up to {found[MAX_FRAME_SIZE]}")
    return found


def window_update(stream: int, more: int) -> bytes:
    """Room for more bytes, of one stream or (0) of all together."""
    return frame(WINDOW, 0, stream, _NUMBER.pack(more))


def reset(stream: int, code: int) -> bytes:
    """The end of a stream that has not come to its end."""
    return frame(RESET, 0, stream, _NUMBER.pack(code))


def goaway(last: int, code: int, why: str = "") -> bytes:
    """The end of a connection; streams up to `last` were taken."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last) + _NUMBER.pack(code) + why.encode())


def without_padding(payload: bytes, flags: int) -> bytes:
    """The payload of a DATA or HEADERS frame, without what only makes it longer. Raises Broken if that is all of it."""
    if flags & PADDED:
        if not payload or payload[0] >= len(payload):
            raise Broken(PROTOCOL_ERROR, "more padding than payload")
        return payload[1 : len(payload) - payload[0]]
    return payload
