"""An open ingest of a namespace: the raw store's writer, and the records that make a blob of what it wrote.

A *shared* ingest has no bytes of its own: a blob that another namespace wrote stands in for them, and committing adds
the blob to this namespace. The first write to it makes a copy that is like any other ingest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace

from moored.kernel.closing import Closing
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    OutOfRange,
    Unknown,
)
from moored.kernel.namespaces import normalise_labels, validate_labels
from moored.kernel.payloads import ContentCreate
from moored.kernel.ports.content import NO_LABELS, Chunk, ContentStore, Digest, Info, Status, Writer
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bolt import blobs
from moored.plugins.metadata.bolt.blobs import Caller
from moored.plugins.metadata.bolt.writes import Writes


@dataclass(slots=True)
class Backing:
    """What the namespaced store and its writers share.

    dirty     whether the raw store may hold something that no record names
    digests   held while a blob is made, taken over or removed in the raw store, until its record is durable
    refs      held, by namespace and ref, while an ingest is opened, committed or aborted
    """

    database: Database
    raw: ContentStore
    writes: Writes
    exchange: Exchange | None
    dirty: bool = True
    digests: Turns[str] = field(default_factory=Turns)
    refs: Turns[tuple[str, str]] = field(default_factory=Turns)

    @contextmanager
    def leaving_something(self) -> Generator[None]:
        """Note, if the block fails, that what it was at may be left in the raw store."""
        try:
            yield
        except BaseException:
            self.dirty = True
            raise


class NamespacedWriter(Closing):
    """The port's LabelledWriter for one namespace and lease.

    raw is the raw store's writer, None for a shared ingest, whose blob is `known`.
    """

    def __init__(
        self, backing: Backing, caller: Caller, ref: str, raw_ref: str, *, raw: Writer | None, known: Info | None
    ) -> None:
        assert raw is not None or known is not None
        self._backing = backing
        self._caller = caller
        self._ref = ref
        self._raw_ref = raw_ref
        self._raw = raw
        self._known = known
        self._opened_at = time.time_ns()
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def ref(self) -> str:
        """See the port."""
        return self._ref

    @property
    def digest(self) -> Digest:
        """See the port."""
        if self._raw is not None:
            return self._raw.digest
        assert self._known is not None
        return self._known.digest

    async def status(self) -> Status:
        """See the port."""
        async with self._turn:
            self._check()
            if self._raw is not None:
                return replace(await self._raw.status(), ref=self._ref)
            blob = self._shared()
            return Status(
                ref=self._ref,
                offset=blob.size,
                total=blob.size,
                started_at=self._opened_at,
                updated_at=self._opened_at,
                expected=blob.digest,
            )

    async def write(self, data: Chunk) -> int:
        """See the port."""
        async with self._turn:
            self._check()
            if self._raw is None:
                blob = self._shared()
                if not len(data):
                    return blob.size
                self._raw = await to_the_end(self._unshare(blob, blob.size))
            return await self._raw.write(data)

    async def truncate(self, size: int = 0) -> None:
        """See the port."""
        async with self._turn:
            self._check()
            if self._raw is not None:
                await self._raw.truncate(size)
                return
            blob = self._shared()
            if size < 0:
                raise InvalidArgument(f"size {size} to cut to is negative")
            if size > blob.size:
                raise OutOfRange(f"cannot cut to {size} bytes, ingest {self._ref!r} has {blob.size}")
            self._raw = await to_the_end(self._unshare(blob, size))

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] = NO_LABELS) -> Info:
        """See the port."""
        async with self._turn:
            self._check()
            try:
                if size < 0:
                    raise InvalidArgument(f"commit size {size} is negative")
                # Before anything is done: what the raw store has committed, nobody takes back.
                validate_labels(labels, blobs.LABELS_PREFIX)
                if "" in labels:
                    raise Unknown("key required")
                wanted = Digest(expected) if expected else None
                return await to_the_end(self._commit(size, wanted, labels))
            finally:
                await self._let_go()

    async def close(self) -> None:
        """See the port."""
        async with self._turn:
            await self._let_go()

    async def _let_go(self) -> None:
        self._closed = True
        if self._raw is not None:
            await self._raw.close()

    def _check(self) -> None:
        # A raw writer knows by itself, and also whether it was aborted.
        if self._closed and self._raw is None:
            raise FailedPrecondition(f"writer of ref {self._ref!r} is closed")

    def _shared(self) -> Info:
        """Give the blob that stands in. Raises Aborted if the ingest is gone."""
        assert self._known is not None
        with self._backing.database.view() as root:
            if blobs.find_ingest(root, self._caller.namespace, self._ref) is None:
                raise Aborted(f"ingest ref {self._ref!r} was aborted")
        return self._known

    async def _unshare(self, blob: Info, size: int) -> Writer:
        """Give a writer on a copy of the blob's first `size` bytes."""
        writer = await self._backing.raw.writer(self._raw_ref)
        try:
            await writer.truncate()
            if size:
                async with (
                    await self._backing.raw.reader(blob.digest, blob.size) as reader,
                    aclosing(reader.chunks(0, size)) as chunks,
                ):
                    async for chunk in chunks:
                        await writer.write(chunk)
            await self._backing.writes.run_within(
                lambda root: blobs.unshare_ingest(root, self._caller.namespace, self._ref)
            )
        except BaseException:
            await writer.close()
            raise
        return writer

    # --- commit -------------------------------------------------------------------------------------------------------

    async def _commit(self, size: int, wanted: Digest | None, labels: Mapping[str, str]) -> Info:
        async with self._backing.refs.take((self._caller.namespace, self._ref)):
            if self._raw is None:
                info = await self._adopt(size, wanted, labels)
            else:
                info = await self._publish(self._raw, size, wanted, labels)
        if self._backing.exchange is not None:
            event = ContentCreate(digest=info.digest, size=info.size)
            await self._backing.exchange.publish("/content/create", event, self._caller.namespace)
        return info

    async def _adopt(self, size: int, wanted: Digest | None, labels: Mapping[str, str]) -> Info:
        """Commit a shared ingest."""
        blob = self._shared()
        if size not in (0, blob.size):
            raise FailedPrecondition(f"unexpected commit size {blob.size}, expected {size}")
        if wanted not in (None, blob.digest):
            raise FailedPrecondition(f"unexpected commit digest {blob.digest}, expected {wanted}")
        async with self._backing.digests.take(blob.digest):
            await self._backing.raw.info(blob.digest)
            info = await self._record(blob.digest, blob.size, labels, repaired=False)
        # Bytes of an earlier stream, which did not know that the blob was there; a later sweep gets them too.
        with suppress(MooredError), self._backing.leaving_something():
            await self._backing.raw.abort(self._raw_ref)
        return info

    async def _publish(self, raw: Writer, size: int, wanted: Digest | None, labels: Mapping[str, str]) -> Info:
        """Make a blob of the bytes in the raw store, then its record."""
        digest = wanted or raw.digest
        known = self._look(digest)
        async with self._backing.digests.take(digest):
            try:
                made = await raw.commit(size, digest if wanted else "")
                size, repaired = made.size, known
            except AlreadyExists:
                # Some namespace has it, and this one has now shown that it has the bytes too.
                size, repaired = (await self._backing.raw.info(digest)).size, False
            return await self._record(digest, size, labels, repaired=repaired)

    def _look(self, digest: Digest) -> bool:
        """Tell whether the namespace has the blob already. Raises NotFound for a lease that is gone meanwhile."""
        with self._backing.database.view() as root:
            blobs.check_lease(root, self._caller)
            return blobs.find_blob(root, self._caller.namespace, digest) is not None

    async def _record(self, digest: Digest, size: int, labels: Mapping[str, str], *, repaired: bool) -> Info:
        """Exchange the ingest's record for the blob's.

        Raises AlreadyExists, having removed the ingest and held the blob by the lease, if the namespace has the blob;
        unless it was `repaired`: its record had outlived its bytes, which are there again.
        """
        now = time.time_ns()

        def change(root: Bucket) -> Info | None:
            blobs.delete_ingest(root, self._caller, self._ref)
            stored = blobs.find_blob(root, self._caller.namespace, digest)
            if stored is not None and not repaired:
                blobs.lease_blob(root, self._caller, digest)
                return None
            info = Info(
                digest=digest,
                size=size,
                created_at=stored.created_at if stored else now,
                updated_at=now,
                labels=normalise_labels({**(stored.labels if stored else {}), **labels}),
            )
            blobs.write_blob(root, self._caller, info)
            return info

        with self._backing.leaving_something():
            info = await self._backing.writes.run_within(change)
        if info is None:
            raise AlreadyExists(f"content {digest}")
        return info
