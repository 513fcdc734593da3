"""The content of each namespace: records with labels over the blobs and ingests of one raw store, which all share.

    writer    record of the ingest durable, then opened in the raw store
    commit    durable in the raw store, then one update: blob recorded and leased, ingest gone
    delete    record gone; the file goes with the next sweep
    sweep     what no record names goes from the raw store

So every record has its bytes at all times, and what a crash leaves in between is a file too many, never one too few.
Source: semantics 2.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import AlreadyExists, DataLoss, InvalidArgument, MooredError, NotFound
from moored.kernel.filters import MappingAdaptor, compile_filters
from moored.kernel.namespaces import current_lease, current_namespace
from moored.kernel.payloads import ContentDelete
from moored.kernel.ports.content import CANONICAL, MAX_REF_BYTES, ContentStore, Digest, Info, Reader, Status, Writer
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bolt import blobs
from moored.plugins.metadata.bolt.blobs import Caller, IngestRecord
from moored.plugins.metadata.bolt.ingest import Backing, NamespacedWriter
from moored.plugins.metadata.bolt.leftovers import Swept
from moored.plugins.metadata.bolt.writes import Writes, look

SHARED: Final = "shared"
"""Policy: a blob that any namespace wrote serves all who know its digest."""
ISOLATED: Final = "isolated"
"""Policy: only blobs of namespaces labelled shareable do; otherwise all bytes have to be sent."""

_BATCH: Final = 256
"""Records that a walk reads in one transaction."""


class NamespacedContent:
    """The port's LabelledContentStore, for the current namespace and under the current lease.

    backend   holds the bytes of all namespaces; its refs are `NAMESPACE/N/REF`
    policy    SHARED or ISOLATED
    changed   called on the loop after each durable write, with True when something was deleted
    """

    def __init__(
        self,
        *,
        database: Database,
        exchange: Exchange | None,
        backend: ContentStore,
        policy: str,
        changed: Callable[[bool], None],
        log: FilteringBoundLogger | None = None,
    ) -> None:
        writes = Writes(database=database, exchange=exchange, changed=changed)
        self._backing = Backing(database, backend, writes, exchange)
        self._log = log or structlog.get_logger()
        self._database = database
        self._raw = backend
        self._writes = writes
        self._shared = policy == SHARED

    @property
    def dirty(self) -> bool:
        """Whether a sweep could find something; true at the start, for what a crash may have left."""
        return self._backing.dirty

    @dirty.setter
    def dirty(self, value: bool) -> None:
        self._backing.dirty = value

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def info(self, digest: str) -> Info:
        """See the port."""
        good, namespace = Digest(digest), current_namespace()
        with self._database.view() as root:
            return blobs.read_blob(root, namespace, good)

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """See the port."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        after: bytes | None = None
        while True:
            read = partial(blobs.blobs_after, namespace=namespace, after=after, limit=_BATCH, wanted=wanted)
            found, after = await look(self._database, read)
            for info in found:
                yield info
            if after is None:
                return

    async def update(self, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """See the port."""
        good, namespace = Digest(digest), current_namespace()
        return await self._writes.run(lambda root: blobs.relabel_blob(root, namespace, good, labels, paths))

    async def delete(self, digest: str) -> None:
        """See the port; the bytes go with the next sweep, and only if no other namespace has them."""
        good, caller = Digest(digest), _caller()
        self.dirty = True
        await self._writes.run(
            lambda root: blobs.delete_blob(root, caller, good),
            lambda _: ("/content/delete", ContentDelete(digest=good), caller.namespace),
            deletes=True,
        )

    async def reader(self, digest: str, size: int | None = None) -> Reader:
        """See the port."""
        info = await self.info(digest)
        return await self._raw.reader(info.digest, info.size if size is None else size)

    async def verify(self, digest: str) -> Info:
        """See the port."""
        info = await self.info(digest)
        await self._raw.verify(info.digest)
        return info

    # --- ingests ------------------------------------------------------------------------------------------------------

    async def writer(self, ref: str, total: int = 0, expected: str = "") -> NamespacedWriter:
        """See the port.

        A blob that another namespace has, where the policy lets this one have it, is begun as a shared ingest: all
        bytes are there. A blob whose bytes were lost or cut can be written again.
        """
        caller = _caller()
        _check_ref(ref)
        if total < 0:
            raise InvalidArgument(f"total {total} of ref {ref[:256]!r} is negative")
        wanted = Digest(expected) if expected else None
        opened: list[IngestRecord] = []
        async with self._backing.refs.take((caller.namespace, ref)):
            try:
                known = await to_the_end(self._open(caller, ref, total, wanted, opened))
                raw = None if known is not None else await self._open_raw(opened[0], total, wanted)
            except BaseException:
                if opened and opened[0].made:
                    await self._writes.run(lambda root: blobs.delete_ingest(root, caller, ref))
                raise
        return NamespacedWriter(self._backing, caller, ref, opened[0].raw_ref, raw=raw, known=known)

    async def _open(
        self, caller: Caller, ref: str, total: int, wanted: Digest | None, opened: list[IngestRecord]
    ) -> Info | None:
        """Record an ingest, put it into `opened`, and give the blob that it shares, None if it has bytes of its own.

        Raises AlreadyExists if the namespace has the blob, which is then under the lease.
        """
        if wanted is None:
            opened.append(await self._writes.run_within(lambda root: blobs.open_ingest(root, caller, ref, "")))
            return None
        async with self._backing.digests.take(wanted):
            try:
                raw = await self._raw.info(wanted)
            except (NotFound, DataLoss):
                raw = None

            def change(root: Bucket) -> Info | None:
                stored = blobs.find_blob(root, caller.namespace, wanted)
                if stored is not None and raw is not None and stored.size == raw.size:
                    blobs.lease_blob(root, caller, wanted)
                    return None
                known = raw if stored is None and self._may_share(root, raw, total) else None
                opened.append(blobs.open_ingest(root, caller, ref, known.digest if known else ""))
                return known

            known = await self._writes.run_within(change)
            if not opened:
                raise AlreadyExists(f"content {wanted}")
            return known

    def _may_share(self, root: Bucket, raw: Info | None, total: int) -> bool:
        return raw is not None and total in (0, raw.size) and (self._shared or blobs.is_shareable(root, raw.digest))

    async def _open_raw(self, record: IngestRecord, total: int, wanted: Digest | None) -> Writer:
        if wanted is not None and wanted.algorithm != CANONICAL:
            # Suppressed: another namespace's, which this one may not have yet.
            with suppress(AlreadyExists):
                return await self._raw.writer(record.raw_ref, total, wanted)
        return await self._raw.writer(record.raw_ref, total)

    async def status(self, ref: str) -> Status:
        """See the port; shared ingests have no status but their writer's."""
        namespace = current_namespace()
        _check_ref(ref)
        with self._database.view() as root:
            record = blobs.read_ingest(root, namespace, ref)
        try:
            return replace(await self._raw.status(record.raw_ref), ref=ref)
        except NotFound as error:
            raise NotFound(f"ingest ref {ref!r}") from error

    async def list_statuses(self, *filters: str) -> list[Status]:
        """See the port; ordered by ref, without shared ingests."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        refs = await look(self._database, lambda root: blobs.ingests_of(root, namespace))
        if not refs:
            return []
        mine = [
            replace(status, ref=refs[status.ref]) for status in await self._raw.list_statuses() if status.ref in refs
        ]
        return sorted(
            (status for status in mine if wanted.match(MappingAdaptor({"ref": status.ref}))),
            key=lambda status: status.ref.encode("utf-8", "surrogateescape"),
        )

    async def abort(self, ref: str) -> None:
        """See the port."""
        caller = _caller()
        _check_ref(ref)
        await to_the_end(self._abort(caller, ref))

    async def _abort(self, caller: Caller, ref: str) -> None:
        def change(root: Bucket) -> IngestRecord:
            record = blobs.read_ingest(root, caller.namespace, ref)
            blobs.delete_ingest(root, caller, ref)
            return record

        async with self._backing.refs.take((caller.namespace, ref)):
            record = await self._writes.run_within(change)
            # A shared one is not there, nor one whose opening was cut off.
            with suppress(NotFound), self._backing.leaving_something():
                await self._raw.abort(record.raw_ref)

    # --- garbage ------------------------------------------------------------------------------------------------------

    async def sweep(self) -> Swept:
        """Remove the blobs and ingests that no record of any namespace names from the raw store.

        May run beside everything else: what is being committed, taken over or opened is left alone, and whoever wants
        a blob that is being removed waits for that.
        """
        digests = [info.digest async for info in self._raw.walk()]
        raw_refs = [status.ref for status in await self._raw.list_statuses()]
        kept = await look(self._database, blobs.named)
        swept = Swept(0, whole=True)
        for digest in digests:
            if digest not in kept.digests:
                swept += await self._swept(self._sweep_blob, digest)
        for raw_ref in raw_refs:
            if raw_ref not in kept.raw_refs:
                swept += await self._swept(self._sweep_ingest, raw_ref)
        return swept

    async def _swept(self, sweep: Callable[[str], Coroutine[Any, Any, bool]], name: str) -> Swept:
        try:
            return Swept(int(await to_the_end(sweep(name))), whole=True)
        except MooredError as error:
            # One that cannot be removed must not keep the others.
            self._log.warning("cannot remove a leftover", name=name, error=error.text)
            return Swept(0, whole=False)

    async def _sweep_blob(self, digest: str) -> bool:
        async with self._backing.digests.take(digest):
            # Looked at again: a record may have come since the first look, and none can come now.
            with self._database.view() as root:
                if blobs.is_named_blob(root, digest):
                    return False
            try:
                await self._raw.delete(digest)
            except NotFound:
                return False
            return True

    async def _sweep_ingest(self, raw_ref: str) -> bool:
        namespace, _, rest = raw_ref.partition("/")
        async with self._backing.refs.take((namespace, rest.partition("/")[2])):
            with self._database.view() as root:
                if blobs.is_named_ingest(root, raw_ref):
                    return False
            try:
                await self._raw.abort(raw_ref)
            except NotFound:
                return False
            return True


def _caller() -> Caller:
    return Caller(current_namespace(), current_lease())


def _check_ref(ref: str) -> None:
    if not ref:
        raise InvalidArgument("ref must not be empty")
    size = len(ref.encode("utf-8", "surrogatepass"))
    if size > MAX_REF_BYTES:
        raise InvalidArgument(f"ref of {size} bytes, at most {MAX_REF_BYTES} wanted")
