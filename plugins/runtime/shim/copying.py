"""Bytes on their way from one descriptor to another, as fast as the slower side and without stopping the loop.

Both descriptors are non-blocking. Between pipes the kernel moves pages and no byte is ever in this process; elsewhere
at most CHUNK bytes are held.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim.loop import Loop

CHUNK: Final = 65536
_NEVER: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EPIPE})
"""How splice(2) says that it will not do this pair, or that the sink is broken, which writing then tells."""


async def copy(loop: Loop, source: int, sink: int) -> None:
    """Copy to the end of the source. Raises OSError as reading and writing do; what could not be written is lost."""
    if await _splice(loop, source, sink):
        return
    while True:
        data = await read(loop, source)
        if not data:
            return
        await write(loop, sink, data)


async def copy_or_drop(loop: Loop, source: int, sink: int, name: str) -> None:
    """Copy to the end of the source; what the sink refuses (a full disk) is dropped, with one warning.

    A container is not stopped by a log that cannot be written. Raises OSError as reading does.
    """
    if await _splice(loop, source, sink):
        return
    warned = False
    while True:
        data = await read(loop, source)
        if not data:
            return
        try:
            await write(loop, sink, data)
        except OSError as error:
            if not warned:
                log.warning(f"{name} cannot be written, what fails is dropped: {os.strerror(error.errno or 0).lower()}")
            warned = True


async def read(loop: Loop, source: int) -> bytes:
    """Wait for bytes; empty at the end."""
    while True:
        await loop.readable(source)
        try:
            return os.read(source, CHUNK)
        except BlockingIOError:
            continue


async def write(loop: Loop, sink: int, data: bytes) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(sink, rest) :]
        except BlockingIOError:
            await loop.writable(sink)


async def _splice(loop: Loop, source: int, sink: int) -> bool:
    """Copy inside the kernel and say whether the end was reached; if not, nothing was taken that was not written."""
    while True:
        await loop.readable(source)
        try:
            if not os.splice(source, sink, 16 * CHUNK, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE):
                return True
        except BlockingIOError:
            await loop.writable(sink)  # the source had something, so it is the sink that is full
        except OSError as error:
            if error.errno in _NEVER:
                return False
            raise
