"""An open blob of a local store."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from moored.kernel.closing import Closing
from moored.kernel.errors import DataLoss, FailedPrecondition, InvalidArgument, OutOfRange
from moored.kernel.ports.content import MAX_CHUNK, Digest
from moored.kernel.workers import Workers, finished
from moored.plugins.content.local.faults import about

SMALL: Final = 64 << 10
"""Bytes of a blob that is read whole when it is opened: manifests and configs are."""


class LocalReader(Closing):
    """The port's Reader on a file descriptor, which it closes; `closed` is told when it has."""

    def __init__(
        self, workers: Workers, digest: Digest, fd: int, size: int, closed: Callable[[LocalReader], None]
    ) -> None:
        self._workers: Final = workers
        self._digest: Final = digest
        self._size: Final = size
        self._told = closed
        self._fd = fd
        self._open = True
        self._under_way: set[Future[bytes]] = set()
        self._whole: bytes | None = None

    def take_small(self) -> None:
        """Read all of a small blob now, on the thread that has opened it: reading it later costs no other turn."""
        if self._size <= SMALL:
            self._whole = self._read(0, self._size)

    def take_cached(self) -> None:
        """Do so if all of it is in memory, without blocking."""
        if self._size <= SMALL:
            data = bytearray(self._size)
            with suppress(OSError):  # it is not, or the file system cannot tell
                if os.preadv(self._fd, [data], 0, os.RWF_NOWAIT) == self._size:
                    self._whole = bytes(data)

    @property
    def digest(self) -> Digest:
        """See the port."""
        return self._digest

    @property
    def size(self) -> int:
        """See the port."""
        return self._size

    async def read_at(self, offset: int, size: int = MAX_CHUNK) -> bytes:
        """See the port."""
        end = self._end(offset, size)
        if end <= offset:
            return b""
        if self._whole is not None:
            return self._whole[offset:end]
        return await self._finish(self._start(offset, min(end, offset + MAX_CHUNK)))

    async def chunks(self, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes]:
        """See the port."""
        end = self._end(offset, size) if size else self._end(offset, self._size)
        if self._whole is not None:
            if end > offset:
                yield self._whole[offset:end]
            return
        at = min(end, offset + MAX_CHUNK)
        ahead = self._start(offset, at) if at > offset else None
        try:
            while ahead is not None:
                data = await self._finish(ahead)
                ahead = None
                if at < end:
                    start, at = at, min(end, at + MAX_CHUNK)
                    ahead = self._start(start, at)
                yield data
        finally:
            if ahead is not None and not ahead.cancel():
                await self._finish(ahead)

    def fileno(self) -> int | None:
        """See the port."""
        self._check()
        return self._fd

    async def close(self) -> None:
        """See the port."""
        if not self._open:
            return
        self._open = False
        if self._whole is not None:
            os.close(self._fd)
            self._told(self)
            return
        try:
            await self._workers.run(self._close, always=True)
        finally:
            self._told(self)

    def _close(self) -> None:
        for work in list(self._under_way):
            if not work.cancel():
                work.exception()
        os.close(self._fd)

    def _end(self, offset: int, size: int) -> int:
        self._check()
        if offset < 0 or size < 0:
            raise InvalidArgument(f"cannot read {size} bytes at {offset}, a negative number has no meaning")
        if offset > self._size:
            raise OutOfRange(f"read past object length {self._size} bytes")
        return min(self._size, offset + size)

    def _check(self) -> None:
        if not self._open:
            raise FailedPrecondition(f"reader of content {self._digest} is closed")

    def _start(self, start: int, end: int) -> Future[bytes]:
        self._check()
        work = self._workers.pool.submit(self._read, start, end)
        self._under_way.add(work)
        return work

    async def _finish(self, work: Future[bytes]) -> bytes:
        try:
            return await finished(work)
        finally:
            self._under_way.discard(work)

    def _read(self, start: int, end: int) -> bytes:
        with about(f"content {self._digest}"):
            data = os.pread(self._fd, end - start, start)
            while len(data) < end - start:
                more = os.pread(self._fd, end - start - len(data), start + len(data))
                if not more:
                    have = os.fstat(self._fd).st_size
                    raise DataLoss(f"content {self._digest} has {have} bytes, {self._size} wanted")
                data += more
        return data
