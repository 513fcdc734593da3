"""The open ingests of a local store and their writers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from moored.kernel.closing import Closing
from moored.kernel.duration import Duration
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from moored.kernel.ports.content import Chunk, Digest, Info, Status
from moored.kernel.turns import Turns
from moored.kernel.workers import Stop, Workers
from moored.plugins.content.local.blobs import Blobs
from moored.plugins.content.local.faults import Unsafe, about, port_error
from moored.plugins.content.local.ingest import (
    Ingest,
    digest_of,
    ingest_name,
    open_ingest,
    read_status,
    remove_entry,
)

AT_ONCE: Final = 64 << 10
"""Up to so many bytes are hashed and put into the page cache on the event loop, in less than 0.1 ms."""
SLOW_SECONDS: Final = 0.002
"""A write on the event loop that took longer has met a disk that makes writers wait."""
SLOW_PAUSE_SECONDS: Final = 10.0
"""Nothing is written there for so long then."""
OVERLAP: Final = 256 << 10
"""From this many bytes on, hashing and writing run side by side; below it the hand-over costs more."""


def shown(ref: str) -> str:
    """Give a ref as error texts show it: short."""
    return ref if len(ref) <= 256 else f"{ref[:256]}..."


class Hold:
    """Who has a ref open, from the request on. `turn` is held by the call at work on it; ingest is None until open."""

    def __init__(self) -> None:
        self.since: Final = time.time_ns()
        self.turn: Final = asyncio.Lock()
        self.ingest: Ingest | None = None
        self.aborted = False

    def refusal(self, ref: str) -> Unavailable:
        """Give the error for everybody else."""
        age = Duration.from_ns(max(0, time.time_ns() - self.since) // 1_000_000 * 1_000_000)
        since = datetime.fromtimestamp(self.since / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")
        return Unavailable(f"ref {shown(ref)} locked for {age} (since {since})")


class Ingests:
    """The folder `ingest`, given by its descriptor, and who has which ref open. On the event loop's thread only."""

    def __init__(self, fd: int, blobs: Blobs, workers: Workers) -> None:
        self._fd = fd
        self._blobs = blobs
        self._workers = workers
        self._holds: dict[str, Hold] = {}
        self._publishing: Turns[str] = Turns()
        self._slow_until = 0.0

    def statuses(self) -> dict[str, Status]:
        """Give the state of the open ones by ref, newer than what is on disk."""
        return {ref: hold.ingest.status for ref, hold in self._holds.items() if hold.ingest is not None}

    async def open(self, ref: str, total: int, expected: Digest | None, algorithm: str) -> LocalWriter:
        """See the port's `writer`."""
        if ref in self._holds:
            raise self._holds[ref].refusal(ref)
        hold = self._holds[ref] = Hold()
        async with hold.turn:
            try:
                if expected is not None:
                    await self._refuse_existing(expected, total)
                await self._open(hold, ref, total, algorithm)
            except BaseException:
                if hold.ingest is not None and hold.ingest.begun:
                    await self._discard(hold.ingest)
                await self._let_go(ref, hold)
                raise
        return LocalWriter(self, ref, hold)

    async def _refuse_existing(self, expected: Digest, total: int) -> None:
        # A blob that is about to be made durable counts only then.
        async with self._publishing.take(expected):
            if await self._workers.run(lambda: self._blobs.has(expected, total or None)):
                raise AlreadyExists(f"content {expected}")

    async def _open(self, hold: Hold, ref: str, total: int, algorithm: str) -> None:
        stop = Stop()

        def work() -> None:
            with about(f"ingest ref {shown(ref)!r}"):
                hold.ingest = open_ingest(self._fd, ref, total, algorithm, stop)

        await self._workers.run(work, stop=stop)

    async def append(self, ingest: Ingest, data: Chunk) -> int:
        """Write and hash all of data, and give the new offset."""
        size = len(data) if isinstance(data, (bytes, bytearray)) else data.nbytes

        if size <= AT_ONCE and time.monotonic() >= self._slow_until:
            self._append_at_once(ingest, data, size)
            return ingest.offset

        def work() -> None:
            aside = self._workers.pool.submit(ingest.hashed, data) if size >= OVERLAP else None
            try:
                self._put(ingest, data)
            except BaseException:
                if aside is not None and not aside.cancel():
                    aside.exception()  # data is the caller's again when this returns
                raise
            # Hashing that found no free thread yet is done here: no thread ever waits for one that has not begun.
            hasher = ingest.hashed(data) if aside is None or aside.cancel() else aside.result()
            ingest.accept(hasher, size)

        await self._workers.run(work)
        return ingest.offset

    def _append_at_once(self, ingest: Ingest, data: Chunk, size: int) -> None:
        """Write and hash a little on the event loop, and leave that to the threads for a while if the disk is slow.

        Clients send their bytes in many small messages and wait for each answer; handing such a piece to a thread and
        back takes several times as long as to copy it into the page cache.
        """
        hasher = ingest.hashed(data)
        began = time.monotonic()
        self._put(ingest, data)
        if (now := time.monotonic()) - began > SLOW_SECONDS:
            self._slow_until = now + SLOW_PAUSE_SECONDS
        ingest.accept(hasher, size)

    @staticmethod
    def _put(ingest: Ingest, data: Chunk) -> None:
        try:
            ingest.put(data)
        except OSError as error:
            raise port_error(f"ingest ref {shown(ingest.ref)!r}", error) from error

    async def truncate(self, ingest: Ingest, size: int) -> None:
        """See the port."""
        stop = Stop()

        def work() -> None:
            with about(f"ingest ref {shown(ingest.ref)!r}"):
                ingest.truncate(size, stop)

        await self._workers.run(work, stop=stop)

    async def commit(self, ingest: Ingest, size: int, expected: Digest | None) -> Info:
        """Make the ingest a blob, as the port's `commit`; the caller has its turn and lets go of it afterwards."""
        stop = Stop()
        digest = expected or ingest.digest

        def work() -> Info:
            with about(f"ingest ref {shown(ingest.ref)!r}"):
                ingest.seal(size, digest, stop)
            return self._publish(ingest, digest)

        try:
            # One turn of a thread for all of it: handing a small blob over takes longer than the work.
            async with self._publishing.take(digest):
                return await self._workers.run(work, stop=stop)
        except Unsafe as error:
            await self._discard(ingest)
            raise DataLoss(str(error)) from error

    def _publish(self, ingest: Ingest, digest: Digest) -> Info:
        what = f"ingest ref {shown(ingest.ref)!r}"
        with about(what):
            try:
                info = self._blobs.publish(ingest.folder, digest)
            except NotFound:
                raise NotFound(what) from None
            except AlreadyExists:
                self._remove(ingest)
                raise
        self._remove(ingest)
        return info

    def _remove(self, ingest: Ingest) -> None:
        ingest.gone = True
        # What is left over is not whole, and goes with the next writer of the ref or the next start.
        with suppress(OSError):
            remove_entry(self._fd, ingest_name(ingest.ref))
        ingest.close()

    async def _discard(self, ingest: Ingest) -> None:
        await self._workers.run(lambda: self._remove(ingest), always=True)

    async def suspend(self, ref: str, hold: Hold) -> None:
        """Close the ingest of a hold for later if it is still there, and free the ref; the caller has its turn.

        Raises DataLoss if it had to be removed.
        """
        ingest = hold.ingest
        if ingest is None:
            return
        try:
            if not ingest.gone:
                await self._workers.run(ingest.suspend, always=True)
        except Unsafe as error:
            await self._discard(ingest)
            raise DataLoss(str(error)) from error
        finally:
            await self._let_go(ref, hold)

    async def close(self) -> None:
        """Close all that is open, for later."""
        for ref, hold in list(self._holds.items()):
            async with hold.turn:
                with suppress(DataLoss):
                    await self.suspend(ref, hold)

    async def _let_go(self, ref: str, hold: Hold) -> None:
        try:
            if hold.ingest is not None and not hold.ingest.closed:
                await self._workers.run(hold.ingest.close, always=True)
        finally:
            hold.ingest = None
            if self._holds.get(ref) is hold:
                del self._holds[ref]

    async def abort(self, ref: str) -> None:
        """See the port."""
        while (hold := self._holds.get(ref)) is not None:
            async with hold.turn:
                if self._holds.get(ref) is hold:
                    await self._abort(ref, hold)
                    return
        hold = self._holds[ref] = Hold()
        async with hold.turn:
            await self._abort(ref, hold)

    async def _abort(self, ref: str, hold: Hold) -> None:
        def work() -> None:
            with about(f"ingest ref {shown(ref)!r}"):
                whole = read_status(self._fd, ingest_name(ref)) is not None
                remove_entry(self._fd, ingest_name(ref))
                if not whole:
                    raise NotFound(f"ingest ref {shown(ref)!r}")
            hold.aborted = True

        try:
            await self._workers.run(work)
        finally:
            if hold.ingest is None or hold.aborted:
                await self._let_go(ref, hold)


class LocalWriter(Closing):
    """The port's Writer on an ingest folder."""

    def __init__(self, ingests: Ingests, ref: str, hold: Hold) -> None:
        self._ingests = ingests
        self._ref = ref
        self._hold = hold
        self._last = self._open().hasher

    @property
    def ref(self) -> str:
        """See the port."""
        return self._ref

    @property
    def digest(self) -> Digest:
        """See the port."""
        return digest_of(self._last)

    async def status(self) -> Status:
        """See the port."""
        async with self._hold.turn:
            return self._open().status

    async def write(self, data: Chunk) -> int:
        """See the port."""
        async with self._hold.turn:
            ingest = self._open()
            try:
                return await self._ingests.append(ingest, data)
            finally:
                self._last = ingest.hasher

    async def truncate(self, size: int = 0) -> None:
        """See the port."""
        if size < 0:
            raise InvalidArgument(f"size {size} to cut to is negative")
        async with self._turn() as ingest:
            await self._ingests.truncate(ingest, size)

    async def commit(self, size: int = 0, expected: str = "") -> Info:
        """See the port."""
        async with self._turn() as ingest:
            try:
                if size < 0:
                    raise InvalidArgument(f"commit size {size} is negative")
                return await self._ingests.commit(ingest, size, Digest(expected) if expected else None)
            finally:
                await self._ingests.suspend(self._ref, self._hold)

    async def close(self) -> None:
        """See the port."""
        async with self._hold.turn:
            await self._ingests.suspend(self._ref, self._hold)

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[Ingest]:
        async with self._hold.turn:
            ingest = self._open()
            try:
                yield ingest
            finally:
                self._last = ingest.hasher

    def _open(self) -> Ingest:
        if self._hold.aborted:
            raise Aborted(f"ingest ref {shown(self._ref)!r} was aborted")
        if self._hold.ingest is None:
            raise FailedPrecondition(f"writer of ref {shown(self._ref)!r} is closed")
        return self._hold.ingest
