"""The port's Snapshotter over records and layers: files first and records second, the other way round to remove."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import FailedPrecondition, MooredError, NotFound, Unimplemented
from moored.kernel.filters import Filter, MappingAdaptor, compile_filters
from moored.kernel.ports.databases import DatabaseOpener
from moored.kernel.ports.metadata import Database
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import NO_LABELS, REBASE, Also, Info, Kind, Labels, Usage
from moored.kernel.workers import Stop, Stopped
from moored.plugins.snapshots.faults import about, reason
from moored.plugins.snapshots.folder import id_of, new_entry
from moored.plugins.snapshots.keys import Keys
from moored.plugins.snapshots.layers import Layers
from moored.plugins.snapshots.records.store import Records, Snapshot
from moored.plugins.snapshots.workers import Workers

R = TypeVar("R")

METADATA: Final = "metadata"
"""The records' database in the snapshotter's folder."""
THREADS: Final = 8
"""Snapshots made, measured or removed side by side; further ones wait."""
_PAGE: Final = 256
"""Snapshots that a walk reads in one go."""


@asynccontextmanager
async def open_snapshotter(
    layers: Layers, databases: DatabaseOpener, log: FilteringBoundLogger
) -> AsyncGenerator[RecordedSnapshotter]:
    """Open a snapshotter's folder, made if missing; leaving closes it.

    What a crash left half-made is put right: files without a record go (in the background), files that a record of an
    active snapshot or view lacks are made again.
    Raises Skip where the host cannot serve it; FailedPrecondition for a folder that has snapshots but no records.
    """
    workers = Workers(THREADS, "snapshots")
    try:
        await workers.whole(lambda _: workers.run(partial(_open, layers)))
        records = Records(await databases.open(layers.folder.root / METADATA))
        snapshotter = RecordedSnapshotter(layers, records, workers, log)
        try:
            await snapshotter.recover()
            yield snapshotter
        finally:
            await snapshotter.close()
    finally:
        await workers.close()
        layers.folder.close()


def _open(layers: Layers) -> None:
    with about("the snapshotter's folder"):
        layers.open()


class RecordedSnapshotter:
    """The port's Snapshotter and Recorded; made by `open_snapshotter`.

    An id is given out once in the life of a process and never again once a record had it. While an id is in `_busy`,
    its entries may be there without a record.
    """

    def __init__(self, layers: Layers, records: Records, workers: Workers, log: FilteringBoundLogger) -> None:
        self._layers = layers
        self._folder = layers.folder
        self._records = records
        self._workers = workers
        self._log = log
        self._keys = Keys()
        self._last_id = 0
        self._busy: set[int] = set()
        self._sweep: asyncio.Task[None] | None = None
        self._sweep_stop = Stop()

    @property
    def capabilities(self) -> frozenset[str]:
        """See the port."""
        return self._layers.capabilities

    async def recover(self) -> None:
        """Bring files and records together; once, before anything else."""
        entries = await self._workers.whole(lambda _: self._run("the snapshotter's folder", self._folder.entries))
        last_id = await self._records.start(may_create=not entries)
        if last_id is None:
            # A lost or foreign database must not make everything here look abandoned.
            raise FailedPrecondition(
                f"folder {str(self._folder.root)!r} has snapshots but no records of them, wanted both or neither"
            )
        self._last_id = max([last_id, *(id_of(entry) or 0 for entry in entries)])
        records = await self._workers.whole(lambda _: self._workers.run(self._records.everything))
        known = {entry: one for one in records if (entry := self._layers.entry(one)) is not None}
        for entry in known.keys() - entries:
            await self._workers.whole(partial(self._mend, known[entry]))
        if abandoned := entries - known.keys():
            self._sweep = asyncio.get_running_loop().create_task(self._remove_all(abandoned, self._sweep_stop))

    async def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """See the port."""
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """See the port."""
        return await self._create(Kind.VIEW, key, parent, labels)

    async def mounts(self, key: str) -> list[Mount]:
        """See the port."""
        return await self._workers.whole(lambda _: self._mounts(key))

    async def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """See the port."""
        async with self._keys.hold((key, name), (parent,) if parent else ()):
            await self._workers.whole(partial(self._commit, None, name, key, labels, parent))

    @property
    def database(self) -> Database:
        """See Recorded."""
        return self._records.database

    async def create_with(self, also: Also, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        """See Recorded."""
        self._workers.check_open()
        async with self._keys.hold((key,), (parent,) if parent else ()):
            return await self._make(also, _new(kind, key, parent, labels), Stop())

    async def commit_with(self, also: Also, name: str, key: str, labels: Labels, parent: str) -> None:
        """See Recorded."""
        self._workers.check_open()
        async with self._keys.hold((key, name), (parent,) if parent else ()):
            await self._commit(also, name, key, labels, parent, Stop())

    async def stat(self, name: str) -> Info:
        """See the port."""
        return self._shown(self._records.find(name))

    async def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Info:
        """See the port."""
        return self._shown(await self._workers.whole(lambda _: self._records.update(name, labels, paths)))

    async def usage(self, name: str) -> Usage:
        """See the port."""
        return await self._workers.whole(lambda stop: self._usage(name, stop))

    async def remove(self, name: str) -> None:
        """See the port."""
        async with self._keys.hold((name,)):
            removed = await self._workers.whole(lambda _: self._records.remove(name))
        entry = self._layers.entry(removed)
        if entry is not None and not self._layers.deferred:
            await self._workers.whole(lambda _: self._remove_all([entry], Stop()))

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """See the port."""
        chosen = compile_filters(filters)
        last: str | None = None
        while page := await self._workers.whole(partial(self._page, last)):
            last = page[-1].info.name
            for snapshot in page:
                info = self._shown(snapshot)
                if _matches(chosen, info):
                    yield info

    async def cleanup(self) -> None:
        """See the port."""
        await self._workers.whole(self._cleanup)

    async def close(self) -> None:
        """See the port."""
        self._sweep_stop.set()
        if self._sweep is not None:
            await asyncio.wait([self._sweep])
        await self._workers.close()
        await self._records.close()
        self._folder.close()

    # --- the calls themselves, run to their end -----------------------------------------------------------------------

    async def _create(self, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        async with self._keys.hold((key,), (parent,) if parent else ()):
            return await self._workers.whole(partial(self._make, None, _new(kind, key, parent, labels)))

    async def _make(self, also: Also | None, info: Info, stop: Stop) -> list[Mount]:
        self._last_id += 1
        id_ = self._last_id
        self._busy.add(id_)
        try:
            if self._layers.quick:
                return await self._records.create(id_, info, partial(self._made, stop), also)
            snapshot = Snapshot(id_, info, self._records.plan(info.name, info.parent))
            mounts = await self._workers.run(partial(self._made, stop, snapshot))
            return await self._records.create(id_, info, lambda _: mounts, also)
        except BaseException:
            await self._discard(self._layers.entry(Snapshot(id_, info)))
            raise
        finally:
            self._busy.discard(id_)

    def _made(self, stop: Stop, snapshot: Snapshot) -> list[Mount]:
        """Make the files of a snapshot and give its mounts, unless nobody waits any more; blocks."""
        with about(f"snapshot {snapshot.info.name}"):
            self._make_files(snapshot, stop)
            mounts = list(self._layers.mounts(snapshot))
        stop.check()
        return mounts

    def _make_files(self, snapshot: Snapshot, stop: Stop) -> None:
        if self._layers.entry(snapshot) is not None:
            self._layers.make(snapshot, stop)

    async def _mounts(self, key: str) -> list[Mount]:
        snapshot = self._records.resolve(key)
        if snapshot.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed, wanted an active one or a view")
        return await self._run(f"snapshot {key}", lambda: list(self._layers.mounts(snapshot)))

    async def _commit(  # noqa: PLR0917
        self, also: Also | None, name: str, key: str, labels: Labels, parent: str, stop: Stop
    ) -> None:
        snapshot = self._records.plan_commit(name, key, parent)
        if parent and REBASE not in self.capabilities and not self._records.find(key).info.parent:
            raise Unimplemented(f"snapshot {key!r} cannot become a child of {parent!r} at its commit")
        old = self._layers.entry(snapshot)
        new = self._layers.entry(replace(snapshot, info=replace(snapshot.info, kind=Kind.COMMITTED)))
        self._busy.add(snapshot.id)
        try:
            usage = await self._run(f"snapshot {key}", lambda: self._layers.seal(snapshot, stop))
            stop.check()
            await self._records.commit(name, key, labels, parent, usage, also=also)
        except BaseException:
            if new != old:
                await self._discard(new)
            raise
        finally:
            self._busy.discard(snapshot.id)
        if new != old:
            await self._discard(old)

    async def _usage(self, name: str, stop: Stop) -> Usage:
        snapshot = self._records.resolve(name)
        if snapshot.kind is not Kind.ACTIVE:
            return self._records.usage(name)
        try:
            return await self._run(f"snapshot {name}", lambda: self._layers.usage(snapshot, stop))
        except MooredError:
            now = self._records.find(name)  # NotFound if it was removed meanwhile
            if now.id != snapshot.id:
                raise NotFound(f"snapshot {name} does not exist") from None
            raise

    async def _mend(self, snapshot: Snapshot, stop: Stop) -> None:
        """Make the files that a power cut took from a record; those of a committed snapshot cannot be made again."""
        name = snapshot.info.name
        if snapshot.kind is Kind.COMMITTED:
            self._log.error("a committed snapshot has lost its files", snapshot=name, id=snapshot.id)
            return
        try:
            await self._discard(self._layers.entry(snapshot))
            whole = self._records.resolve(name)
            await self._run(f"snapshot {name}", lambda: self._make_files(whole, stop))
        except MooredError as error:
            self._log.error("cannot make the files of a snapshot again", snapshot=name, error=error.text)
        else:
            self._log.warning("made the files of a snapshot again, empty", snapshot=name, id=snapshot.id)

    async def _page(self, last: str | None, _: Stop) -> list[Snapshot]:
        return await self._workers.run(lambda: self._records.page(last, _PAGE))

    async def _cleanup(self, stop: Stop) -> None:
        if self._sweep is not None:
            await asyncio.wait([self._sweep])
        # The order matters: what is made after the listing is not in it; what was made before it is busy still, or has
        # a record by now.
        entries = await self._run("the snapshotter's folder", self._folder.entries)
        busy = frozenset(self._busy)
        known = {self._layers.entry(one) for one in await self._workers.run(self._records.everything)}
        await self._remove_all([one for one in entries - known if id_of(one) not in busy], stop)

    # --- removing -----------------------------------------------------------------------------------------------------

    async def _discard(self, entry: str | None) -> None:
        if entry is not None:
            await self._remove_all([new_entry(entry), entry], Stop())

    async def _remove_all(self, entries: Iterable[str], stop: Stop) -> None:
        """Remove entries; what cannot be removed is left for the next cleanup."""
        for entry in entries:
            try:
                await self._workers.run(partial(self._folder.remove, entry, stop))
            except Stopped:
                return
            except OSError as error:
                self._log.warning("cannot remove files of no snapshot", entry=entry, error=reason(error))

    async def _run(self, what: str, work: Callable[[], R]) -> R:
        """Run work of the layers in a thread; `what` its errors are about."""
        with about(what):
            return await self._workers.run(work)

    def _shown(self, snapshot: Snapshot) -> Info:
        more = self._layers.labels(snapshot)
        return replace(snapshot.info, labels={**snapshot.info.labels, **more}) if more else snapshot.info


def _new(kind: Kind, key: str, parent: str, labels: Labels) -> Info:
    now = time.time_ns()
    return Info(name=key, kind=kind, parent=parent, labels=labels, created_at=now, updated_at=now)


def _matches(chosen: Filter, info: Info) -> bool:
    if chosen.matches_all:
        return True
    fields = {"kind": info.kind.value, "name": info.name, "parent": info.parent, "labels": info.labels}
    return chosen.match(MappingAdaptor(fields))
