"""What the daemon and its worker processes tell each other: JSON behind four bytes of length, big-endian."""

from __future__ import annotations

import json
import os
from struct import Struct
from typing import Any

from moored.kernel import errors
from moored.kernel.errors import Internal, MooredError

LENGTH = Struct(">I")
MAX_REPORT = 4 << 20


def packed(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    data = json.dumps(message).encode()
    return LENGTH.pack(len(data)) + data


def is_whole(data: bytes | bytearray) -> bool:
    """Whether bytes are a message from its first to its last one."""
    return len(data) >= LENGTH.size and len(data) >= LENGTH.size + int(LENGTH.unpack_from(data)[0])


def unpacked(data: bytes) -> dict[str, Any]:
    """The message that bytes are; raises Internal where they are none."""
    if len(data) < LENGTH.size or len(data) != LENGTH.size + LENGTH.unpack_from(data)[0]:
        raise Internal(f"a worker process ended without a report, its last {len(data)} bytes make none")
    found = json.loads(data[LENGTH.size :])
    assert isinstance(found, dict)
    return found


def receive(fd: int) -> dict[str, Any]:
    """Read one message and nothing behind it."""
    size = LENGTH.unpack(_exactly(fd, LENGTH.size))[0]
    if size > MAX_REPORT:
        raise Internal(f"a message of {size} bytes, at most {MAX_REPORT} wanted")
    found = json.loads(_exactly(fd, size))
    assert isinstance(found, dict)
    return found


def _exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            raise Internal(f"the message ends {size - len(data)} bytes early")
        data += piece
    return data


def send(fd: int, message: dict[str, Any]) -> None:
    """Write a message."""
    data = packed(message)
    while data:
        data = data[os.write(fd, data) :]


def fault(error: MooredError) -> dict[str, Any]:
    """A message for an error."""
    return {"error": type(error).__name__, "text": error.text}


def raise_fault(message: dict[str, Any]) -> None:
    """Raise the error that a message tells of, if it does."""
    if "error" in message:
        kind = getattr(errors, str(message["error"]), Internal)
        raise (kind if issubclass(kind, MooredError) else Internal)(str(message.get("text", "")))
