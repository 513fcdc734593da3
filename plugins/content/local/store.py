"""The content store in a local folder; terms, errors and promises are those of `moored.kernel.ports.content`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from moored.kernel.boot import boot_id
from moored.kernel.errors import DataLoss, InvalidArgument, NotFound, Unimplemented
from moored.kernel.filters import Filter, MappingAdaptor, compile_filters
from moored.kernel.ports.content import CANONICAL, MAX_REF_BYTES, Digest, Info, Status
from moored.kernel.workers import Stop, Workers
from moored.plugins.content.local.blobs import Blobs
from moored.plugins.content.local.faults import about
from moored.plugins.content.local.ingest import forget_unsynced, ingest_name, names, read_status, remove_entry
from moored.plugins.content.local.layout import Layout, read_small, write_small
from moored.plugins.content.local.reader import LocalReader
from moored.plugins.content.local.writer import Ingests, LocalWriter, shown

THREADS = 16
"""Threads for blocking calls, if not told otherwise."""
_BATCH = 256
"""Blobs that a walk looks at in one go."""


@asynccontextmanager
async def open_store(
    root: Path, log: FilteringBoundLogger, threads: int = THREADS
) -> AsyncGenerator[LocalContentStore]:
    """Open the store in a folder, made if missing; leaving closes it and what was left open in it.

    What a crash left half-made is removed first. Raises as Layout.
    """
    workers, layout = Workers(threads, "content"), Layout()
    try:
        await workers.run(lambda: layout.open(root), always=True)
        blobs = Blobs(layout.blobs)
        try:
            await workers.run(lambda: _recover(layout, blobs, log))
            store = LocalContentStore(layout, blobs, workers, log)
            try:
                yield store
            finally:
                await store.close()
        finally:
            blobs.close()
    finally:
        await workers.close()
        layout.close()


def _recover(layout: Layout, blobs: Blobs, log: FilteringBoundLogger) -> None:
    blobs.settle()
    boot = boot_id().encode()
    before = read_small(layout.root, "boot", len(boot))
    for name in names(layout.ingest):
        try:
            if read_status(layout.ingest, name) is None:
                remove_entry(layout.ingest, name)
                log.info("removed an ingest that is not whole", ingest=name)
            elif before not in (None, boot) and (size := forget_unsynced(layout.ingest, name)):
                log.info("cut an ingest to what is durable, the machine was restarted", ingest=name, bytes=size)
        except OSError as error:
            # One bad ingest must not keep all content from being served; its own ref will meet the error again.
            log.warning("cannot look after an ingest", ingest=name, error=os.strerror(error.errno or 0))
    if before != boot:
        try:
            write_small(layout.root, "boot", boot)
            os.fsync(layout.root)
        except OSError as error:
            # A full disk must not keep content from being deleted; the next start only cuts more than it has to.
            log.warning("cannot note the boot", reason=os.strerror(error.errno or 0))


class LocalContentStore:
    """The port's ContentStore; made by `open_store`."""

    def __init__(self, layout: Layout, blobs: Blobs, workers: Workers, log: FilteringBoundLogger) -> None:
        self._ingest_fd = layout.ingest
        self._blobs = blobs
        self._workers = workers
        self._log = log
        self._ingests = Ingests(layout.ingest, blobs, workers)
        self._readers: set[LocalReader] = set()

    async def close(self) -> None:
        """Close the writers, for later, and the readers that are still open."""
        await self._ingests.close()
        for reader in list(self._readers):
            await reader.close()

    async def info(self, digest: str) -> Info:
        """See the port."""
        good = Digest(digest)
        return await self._workers.run(lambda: self._blobs.info(good))

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """See the port."""
        wanted = compile_filters(filters)
        digests = iter(await self._workers.run(self._blobs.digests))
        while batch := list(islice(digests, _BATCH)):
            for info in await self._workers.run(partial(self._matching, batch, wanted)):
                yield info

    def _matching(self, digests: Iterable[Digest], wanted: Filter) -> list[Info]:
        found = self._blobs.infos(digests)
        return [info for info in found if wanted.match(MappingAdaptor({"digest": info.digest, "labels": {}}))]

    async def update(self, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """See the port."""
        raise Unimplemented(f"content {Digest(digest)}: this store keeps no labels")

    async def delete(self, digest: str) -> None:
        """See the port."""
        good = Digest(digest)
        await self._workers.run(lambda: self._blobs.delete(good))

    async def reader(self, digest: str, size: int | None = None) -> LocalReader:
        """See the port."""
        good = Digest(digest)
        made: list[LocalReader] = []

        def take(opened: tuple[int, int]) -> LocalReader:
            fd, have = opened
            made.append(LocalReader(self._workers, good, fd, have, self._readers.discard))
            if size not in (None, have):
                raise DataLoss(f"content {good} has {have} bytes, {size} wanted")
            return made[0]

        cached = self._blobs.open_cached(good)
        try:
            if cached is not None:
                take(cached).take_cached()
            else:
                await self._workers.run(lambda: take(self._blobs.open(good)).take_small())
        except BaseException:
            for reader in made:
                await reader.close()
            raise
        self._readers.add(made[0])
        return made[0]

    async def verify(self, digest: str) -> Info:
        """See the port."""
        good = Digest(digest)
        stop = Stop()
        return await self._workers.run(lambda: self._blobs.verify(good, stop), stop=stop)

    async def writer(self, ref: str, total: int = 0, expected: str = "") -> LocalWriter:
        """See the port."""
        _check_ref(ref)
        if total < 0:
            raise InvalidArgument(f"total {total} of ref {shown(ref)!r} is negative")
        wanted = Digest(expected) if expected else None
        return await self._ingests.open(ref, total, wanted, wanted.algorithm if wanted else CANONICAL)

    async def status(self, ref: str) -> Status:
        """See the port."""
        _check_ref(ref)
        what = f"ingest ref {shown(ref)!r}"

        def work() -> Status | None:
            with about(what):
                return read_status(self._ingest_fd, ingest_name(ref))

        found = self._ingests.statuses().get(ref) or await self._workers.run(work)
        if found is None:
            raise NotFound(what)
        return found

    async def list_statuses(self, *filters: str) -> list[Status]:
        """See the port."""
        wanted = compile_filters(filters)
        open_ones = self._ingests.statuses()

        def work() -> list[Status]:
            found = (open_ones.get(status.ref, status) for status in self._statuses())
            return [status for status in found if wanted.match(MappingAdaptor({"ref": status.ref}))]

        return await self._workers.run(work)

    def _statuses(self) -> Iterable[Status]:
        with about("content folder"):
            folders = list(names(self._ingest_fd))
        for name in folders:
            try:
                status = read_status(self._ingest_fd, name)
            except OSError as error:
                self._log.warning("left out a damaged ingest", ingest=name, error=os.strerror(error.errno or 0))
                continue
            if status is not None:
                yield status

    async def abort(self, ref: str) -> None:
        """See the port."""
        _check_ref(ref)
        await self._ingests.abort(ref)


def _check_ref(ref: str) -> None:
    if not ref:
        raise InvalidArgument("ref must not be empty")
    try:
        size = len(ref.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"ref {shown(ref)!r} is no UTF-8") from None
    if size > MAX_REF_BYTES:
        raise InvalidArgument(f"ref of {size} bytes, at most {MAX_REF_BYTES} wanted")
