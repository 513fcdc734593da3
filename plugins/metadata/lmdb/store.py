"""One LMDB environment with its writer: transactions over the records of all databases in it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from moored.kernel.errors import Internal, Unavailable
from moored.kernel.ports.metadata import Stats
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.lmdb.environment import CLOSED, DEFAULT_LIMIT, Environment
from moored.plugins.metadata.lmdb.records import Records
from moored.plugins.metadata.lmdb.writer import Job, Writer

R = TypeVar("R")

MAX_QUEUED: Final = 1024
"""Updates that wait for the writer thread or run on it; further callers wait, first come first served."""


class Store:
    """The port's Database, but for what a transaction sees: all records."""

    def __init__(self, folder: Path, *, limit: int = DEFAULT_LIMIT, create: bool = True) -> None:
        """Open it; see `Environment` for the arguments and errors. The writer thread starts with the first update."""
        self.folder: Final = folder
        self._environment = Environment(folder, limit=limit, create=create)
        self._copying = threading.Lock()
        """Held while LMDB copies, for it must not be closed then."""
        self._slots = asyncio.Semaphore(MAX_QUEUED)
        self._waiting = 0
        self._writer: Writer | None = None
        self._closing: asyncio.Future[None] | None = None
        self._views: dict[int, float] = {}
        self._view_ids = itertools.count()

    @contextmanager
    def view(self) -> Generator[Records]:
        """See the port."""
        txn = self._environment.begin_read()
        records = Records(txn, writable=False)
        view = next(self._view_ids)
        self._views[view] = time.monotonic()
        try:
            yield records
        finally:
            del self._views[view]
            records.end()
            self._environment.met(records.doomed)
            txn.abort()

    async def update(self, change: Callable[[Records], R]) -> R:
        """See the port."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            self._waiting -= 1
            raise
        if self._closing is not None or self._environment.failed is not None:
            self._release()
            raise Unavailable(f"metadata store has stopped: {self._environment.failed or CLOSED}")
        loop = asyncio.get_running_loop()
        if self._writer is None:
            self._writer = Writer(self._environment, loop, self._settle)
        elif self._writer.loop is not loop:
            self._release()
            raise Internal("metadata store is used from a second event loop, wanted the one of its first update")
        future: asyncio.Future[R] = loop.create_future()
        self._writer.submit(Job(change, future))
        return await future

    async def backup(self, path: Path) -> None:
        """Copy all of it; see the port."""
        await to_the_end(asyncio.to_thread(self._copy, path))

    def _copy(self, path: Path) -> None:
        with self._copying:
            self._environment.copy(path)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing is not None

    @contextmanager
    def frozen(self) -> Generator[Callable[[int], None]]:
        """Hold on to what there is now, for the block; raises Unavailable.

        What it gives writes a compact copy of that to a descriptor, from its position on; it blocks, is for any thread,
        and must have ended when the block does. It raises ResourceExhausted and Unavailable.
        """
        txn = self._environment.begin_read()
        view = next(self._view_ids)
        self._views[view] = time.monotonic()

        def copy(fd: int) -> None:
            with self._copying:
                self._environment.copy_to(fd, txn)

        try:
            yield copy
        finally:
            del self._views[view]
            txn.abort()

    def check_readers(self) -> int:
        """Free the reader slots of dead processes and give their number; to be called once a minute or so."""
        return self._environment.check_readers()

    def stats(self) -> Stats:
        """See the port."""
        environment, writer = self._environment, self._writer
        gone = self._closing is not None
        used = 0 if gone else environment.used_bytes()
        started = list(self._views.values())
        return Stats(
            used_bytes=used,
            file_bytes=environment.file_bytes(),
            limit_bytes=environment.limit,
            full=environment.disk_full or used >= environment.limit,
            failed=environment.failed,
            updates=writer.updates if writer else 0,
            commits=writer.commits if writer else 0,
            waiting=self._waiting,
            views=len(started),
            oldest_view_seconds=time.monotonic() - min(started) if started else 0.0,
        )

    async def close(self) -> None:
        """See the port."""
        if self._closing is None:
            if self._writer is not None:
                self._writer.give()
            self._closing = asyncio.ensure_future(asyncio.to_thread(self._close))
        await asyncio.shield(self._closing)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        self._environment.stop(CLOSED)
        with self._copying:
            self._environment.close()

    def _settle(self, batch: list[Job]) -> None:
        for job in batch:
            self._release()
            if job.future.done():
                continue  # cancelled
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    def _release(self) -> None:
        self._waiting -= 1
        self._slots.release()
