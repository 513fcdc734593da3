"""The snapshots of a namespace: records in the object database over a raw snapshotter that all namespaces share.

    prepare  check against the records ─ raw prepare ──────── add the record
    commit   note it in the record ───── raw commit ───────── move the record; after a crash what is noted is finished
             (either is one update with the raw snapshotter's own where its records are in the same file: `Recorded`)
    remove   remove the record ──────────────────────────────────────────────┐
    sweep                                raw remove of what no record names ─┘

The raw snapshotter sees names `NAMESPACE/NUMBER/KEY`, and of the labels those that are meant for it (`is_inherited`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

import structlog

from moored.kernel.errors import AlreadyExists, InvalidArgument, MooredError, NotFound, Unavailable, Unknown
from moored.kernel.filters import Filter, MappingAdaptor, compile_filters, quote
from moored.kernel.namespaces import current_lease, current_namespace, normalise_labels, validate_labels
from moored.kernel.payloads import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import NO_LABELS, SNAPSHOT_REF, Info, Kind, Labels, Recorded, Snapshotter, Usage
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bolt import snapshot_records as records
from moored.plugins.metadata.bolt.busy import Busy
from moored.plugins.metadata.bolt.leftovers import Swept, sweep_snapshots
from moored.plugins.metadata.bolt.snapshot_records import Commit, Place, Record, Shelf
from moored.plugins.metadata.bolt.writes import Writes, look

R = TypeVar("R")

PAGE: Final = 100
"""Records that a walk reads in one go."""
ATTEMPTS: Final = 8
"""Numbers tried for a new snapshot: a crash can leave one in the raw snapshotter that the records do not know."""
_PREFIX: Final = "containerd.io/snapshot/"


def is_inherited(label: str) -> bool:
    """Tell whether the raw snapshotter gets to see a label."""
    return label == SNAPSHOT_REF or label.startswith(_PREFIX)


class NamespacedSnapshotter:
    """The port's Snapshotter for the current namespace and lease, over a raw one of which it is the only user.

    Closing ends this face, not the raw snapshotter.
    """

    def __init__(
        self,
        *,
        database: Database,
        exchange: Exchange | None,
        name: str,
        backend: Snapshotter,
        changed: Callable[[bool], None],
    ) -> None:
        self.dirty = True
        """Whether a sweep could find something."""
        self._database = database
        self._writes = Writes(database=database, exchange=exchange, changed=changed)
        self._name = name
        self._backend = backend
        self._joined = backend if isinstance(backend, Recorded) and backend.database.file is database.file else None
        self._busy = Busy()
        self._turns: Turns[tuple[str, str]] = Turns()
        self._numbers: dict[str, int] = {}
        self._recovered = False
        self._recovering = asyncio.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._log = structlog.get_logger().bind(snapshotter=name)

    @property
    def capabilities(self) -> frozenset[str]:
        """See the port."""
        return self._backend.capabilities

    async def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """See the port; also AlreadyExists `target snapshot "T"` if label SNAPSHOT_REF names one that is there."""
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """See the port; as prepare."""
        return await self._create(Kind.VIEW, key, parent, labels)

    async def mounts(self, key: str) -> list[Mount]:
        """See the port."""
        record = await self._found(key)
        with self._renamed({record.raw: key}):
            return await self._backend.mounts(record.raw)

    async def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """See the port."""
        place = self._place()
        _check_key(name)
        _check_key(key)
        validate_labels(labels, records.LABELS_PREFIX)
        await self._whole(self._commit(place, name, key, normalise_labels(labels), parent), place, name, key)

    async def stat(self, name: str) -> Info:
        """See the port."""
        record = await self._found(name)
        return await self._shown(record)

    async def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Info:
        """See the port."""
        place = self._place()
        _check_key(name)
        return await self._whole(self._update(place, name, labels, tuple(paths)), place, name)

    async def usage(self, name: str) -> Usage:
        """See the port."""
        record = await self._found(name)
        with self._renamed({record.raw: name}):
            return await self._backend.usage(record.raw)

    async def remove(self, name: str) -> None:
        """See the port; the raw snapshot goes with the next collection."""
        place = self._place()
        _check_key(name)
        await self._whole(self._remove(place, name), place, name)

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """See the port."""
        place, chosen = self._place(), compile_filters(filters)
        await self._ready()
        last: str | None = None
        while True:
            self._check_open()
            with self._database.view() as root:
                page = Shelf(root, place).page(last, PAGE)
            if not page:
                return
            last = page[-1].key
            for record in page:
                try:
                    info = await self._shown(record)
                except NotFound:
                    continue  # removed meanwhile, or lost by the raw snapshotter
                if _matches(chosen, info):
                    yield info

    async def cleanup(self) -> None:
        """See the port."""
        self._check_open()
        await self._backend.cleanup()

    async def sweep(self) -> Swept:
        """Remove from the raw snapshotter what no namespace names, and the files of removed snapshots."""
        await self._ready()
        return await sweep_snapshots(self._database, self._backend, self._name, self._busy, self._log)

    async def close(self) -> None:
        """See the port."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- new snapshots ------------------------------------------------------------------------------------------------

    async def _create(self, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        place = self._place()
        _check_key(key)
        validate_labels(labels, records.LABELS_PREFIX)
        return await self._whole(self._make(kind, place, key, parent, normalise_labels(labels)), place, key)

    async def _make(self, kind: Kind, place: Place, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        target = labels.get(SNAPSHOT_REF, "")
        while True:
            with self._database.view() as root:
                shelf = Shelf(root, place)
                taken = _taken(shelf, key, target)
                raw_parent = "" if taken else shelf.raw_parent(parent)
                number = max(shelf.sequence(), self._numbers.get(place.namespace, 0))
            if not taken:
                break
            await self._already(place, *taken)
        for _ in range(ATTEMPTS):
            number += 1
            self._numbers[place.namespace] = max(number, self._numbers.get(place.namespace, 0))
            raw = records.raw_name(place, number, key)
            record = Record(key=key, raw=raw, parent=parent, labels=labels, created_at=0, updated_at=0)
            with self._busy.hold(raw):
                try:
                    return await self._make_one(kind, place, record, raw_parent, number)
                except _RawTakenError as error:
                    fault = error.text
            if target and await self._take_over(place, target, record, raw_parent, number):
                raise AlreadyExists(f"target snapshot {quote(target)} from snapshotter")
            self.dirty = True
        if target:
            raise NotFound(f"target snapshot {quote(target)} in backend")
        raise Unknown(f"unexpected error from snapshotter: {fault}")

    async def _already(self, place: Place, key: str, text: str) -> None:
        """Put what was found under the lease, and raise; return if a collection has taken it meanwhile."""

        def hold(root: Bucket) -> bool:
            found = Shelf(root, place).has(key)
            if found:
                place.hold(root, key)
            return found

        if not place.lease or await self._writes.run_within(hold):
            raise AlreadyExists(text)

    async def _make_one(self, kind: Kind, place: Place, record: Record, raw_parent: str, number: int) -> list[Mount]:
        """Make it in the raw snapshotter and record it. Raises _RawTakenError."""
        told = SnapshotPrepare(key=record.key, parent=record.parent, snapshotter=self._name)
        event = ("/snapshot/prepare", told, place.namespace) if kind is Kind.ACTIVE else None
        made = _now(record)
        adding = False

        def add(root: Bucket) -> None:
            Shelf(root, place).add(made, raw_parent=raw_parent, number=number)

        def also(bucket: Bucket) -> None:
            nonlocal adding
            adding = True
            add(self._database.root_in(bucket))

        labels = _inherited(record.labels)
        try:
            with self._renamed({record.raw: record.key, raw_parent: record.parent}):
                if self._joined is not None:
                    mounts = await self._joined.create_with(also, kind, record.raw, raw_parent, labels)
                elif kind is Kind.ACTIVE:
                    mounts = await self._backend.prepare(record.raw, raw_parent, labels)
                else:
                    mounts = await self._backend.view(record.raw, raw_parent, labels)
        except AlreadyExists as error:
            if adding:
                raise
            raise _RawTakenError(error.text) from error
        if self._joined is None:
            await self._add(add, record.raw)
        await self._writes.tell(event)
        return mounts

    async def _add(self, add: Callable[[Bucket], None], raw: str) -> None:
        """Record what the raw snapshotter has made, or have it removed again."""
        try:
            await self._database.update(add)
        except BaseException:
            self.dirty = True
            with suppress(MooredError):
                await self._backend.remove(raw)
            raise

    async def _take_over(self, place: Place, target: str, record: Record, raw_parent: str, number: int) -> bool:
        """Record a committed snapshot that the raw snapshotter has made by itself for the target; False without one."""
        chosen = f"labels.{quote(SNAPSHOT_REF)}=={quote(target)},parent=={quote(raw_parent)}"
        async for info in self._backend.walk(chosen):
            if (info.kind, info.labels.get(SNAPSHOT_REF), info.parent) != (Kind.COMMITTED, target, raw_parent):
                continue
            with self._busy.claim(info.name) as stays:
                if not stays:
                    return False
                found = replace(
                    record,
                    key=target,
                    raw=info.name,
                    labels={**info.labels, **record.labels},
                    created_at=info.created_at,
                    updated_at=info.updated_at,
                )

                def add(root: Bucket, found: Record = found) -> None:
                    Shelf(root, place).add(found, raw_parent=raw_parent, number=number)

                with suppress(AlreadyExists):
                    await self._writes.run_within(add)
            return True
        return False

    # --- the other changes --------------------------------------------------------------------------------------------

    async def _commit(self, place: Place, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        with self._database.view() as root:
            shelf = Shelf(root, place)
            old = None if shelf.has(name) else shelf.get(key)
            raw_parent = "" if old is None else shelf.raw_parent(parent)
            number = max(shelf.sequence(), self._numbers.get(place.namespace, 0)) + 1
        if old is None:
            await self._already(place, name, f"snapshot {quote(name)}")
            await self._commit(place, name, key, labels, parent)
            return
        if parent and old.parent not in ("", parent):
            raise InvalidArgument(f"snapshot {key!r} has the parent {old.parent!r}, it cannot become {parent!r}")
        self._numbers[place.namespace] = number
        commit = Commit(
            place=place,
            key=key,
            name=name,
            raw=records.raw_name(place, number, name),
            parent=parent or old.parent,
            rebased=bool(parent) and not old.parent,
            labels=labels,
        )
        names = {old.raw: key, commit.raw: name, raw_parent: parent}
        with self._busy.hold(old.raw, commit.raw), self._renamed(names):
            await self._commit_one(commit, old.raw, raw_parent if commit.rebased else "", number)
        told = SnapshotCommit(key=key, name=name, snapshotter=self._name)
        await self._writes.tell(("/snapshot/commit", told, place.namespace))

    async def _commit_one(self, commit: Commit, raw: str, raw_parent: str, number: int) -> None:
        place, labels = commit.place, _inherited(commit.labels)
        if self._joined is not None:

            def also(bucket: Bucket) -> None:
                Shelf(self._database.root_in(bucket), place).commit_at_once(commit, number)

            await self._joined.commit_with(also, commit.raw, raw, labels, raw_parent)
            return
        await self._writes.run_within(lambda root: Shelf(root, place).begin_commit(commit, number))
        try:
            await self._backend.commit(commit.raw, raw, labels, raw_parent)
        except MooredError:
            await self._writes.run_within(lambda root: Shelf(root, place).drop_commit(commit))
            raise
        try:
            await self._database.update(lambda root: Shelf(root, place).finish_commit(commit))
        except MooredError:
            self._recovered = False  # what is noted is finished, or dropped, by the next call
            self.dirty = True
            raise

    async def _update(self, place: Place, name: str, labels: Labels, paths: tuple[str, ...]) -> Info:
        with self._database.view() as root:
            old = Shelf(root, place).get(name)
        changed = replace(old, labels=records.changed_labels(old, labels, paths))
        before, after = _inherited(old.labels), _inherited(changed.labels)
        if before == after:
            info = await self._raw_info(old)
            return _overlaid(info, await self._writes.run_within(lambda root: Shelf(root, place).relabel(changed)))
        # Named one by one, so that the raw snapshotter keeps labels of its own.
        named = [f"labels.{key}" for key in sorted({*before, *after})]
        with self._renamed({old.raw: name}):
            info = await self._backend.update(old.raw, after, named)
        try:
            return _overlaid(info, await self._writes.run_within(lambda root: Shelf(root, place).relabel(changed)))
        except MooredError:
            with suppress(MooredError):
                await self._backend.update(old.raw, before, named)
            raise

    async def _remove(self, place: Place, name: str) -> None:
        told = SnapshotRemove(key=name, snapshotter=self._name)
        self.dirty = True
        await self._writes.run_within(
            lambda root: Shelf(root, place).remove(name),
            lambda _: ("/snapshot/remove", told, place.namespace),
            deletes=True,
        )
        self.dirty = True  # a sweep may have begun in between

    # --- commits that a crash cut off ---------------------------------------------------------------------------------

    async def _ready(self) -> None:
        """Finish commits that are noted and of which no call knows."""
        if self._recovered:
            return
        async with self._recovering:
            if self._recovered:
                return
            for commit in await look(self._database, lambda root: records.commits(root, self._name)):
                if commit.raw not in self._busy.held():
                    await self._settle(commit)
            self._recovered = True

    async def _settle(self, commit: Commit) -> None:
        try:
            done = (await self._backend.stat(commit.raw)).kind is Kind.COMMITTED
        except NotFound:
            done = False
        if done:
            with suppress(AlreadyExists, NotFound):
                await self._writes.run(lambda root: Shelf(root, commit.place).finish_commit(commit))
                self._log.info("finished a commit that was cut off", snapshot=commit.name)
                return
        await self._writes.run(lambda root: Shelf(root, commit.place).drop_commit(commit))

    # --- parts --------------------------------------------------------------------------------------------------------

    def _place(self) -> Place:
        place = Place(current_namespace(), self._name, current_lease())
        self._check_open()
        return place

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"snapshotter {self._name!r} is closed")

    async def _found(self, key: str) -> Record:
        place = self._place()
        _check_key(key)
        await self._ready()
        with self._database.view() as root:
            return Shelf(root, place).get(key)

    async def _shown(self, record: Record) -> Info:
        return _overlaid(await self._raw_info(record), record)

    async def _raw_info(self, record: Record) -> Info:
        with self._renamed({record.raw: record.key}):
            return await self._backend.stat(record.raw)

    async def _whole(self, work: Coroutine[Any, Any, R], place: Place, *keys: str) -> R:
        """Run work to its end, whatever becomes of the caller, while it alone changes these keys."""

        async def run() -> R:
            try:
                async with self._turns.take(*((place.namespace, key) for key in keys)):
                    self._check_open()
                    await self._ready()
                    return await work
            finally:
                work.close()  # of no effect once it has run

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await to_the_end(task)

    @contextmanager
    def _renamed(self, names: Mapping[str, str]) -> Generator[None]:
        """Let errors of the raw snapshotter speak of the names that the caller knows."""
        try:
            yield
        except MooredError as error:
            text = error.text
            for raw in sorted(filter(None, names), key=len, reverse=True):
                text = text.replace(repr(raw), repr(names[raw])).replace(raw, names[raw])
            if text == error.text:
                raise
            raise type(error)(text, bare=error.bare) from error


def _taken(shelf: Shelf, key: str, target: str) -> tuple[str, str] | None:
    """Give the name that is taken, and what to say of it."""
    if target and shelf.has(target):
        return target, f"target snapshot {quote(target)}"
    if shelf.has(key):
        return key, f"snapshot {quote(key)}"
    return None


class _RawTakenError(Exception):
    """The raw snapshotter has the name already."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _check_key(key: str) -> None:
    if not key:
        raise InvalidArgument("snapshot key must not be empty")


def _inherited(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if is_inherited(key)}


def _now(record: Record) -> Record:
    now = time.time_ns()
    return replace(record, created_at=now, updated_at=now)


def _overlaid(info: Info, record: Record) -> Info:
    """Give what the raw snapshotter knows under what the records know."""
    return replace(
        info,
        name=record.key,
        parent=record.parent,
        labels={**info.labels, **record.labels},
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _matches(chosen: Filter, info: Info) -> bool:
    if chosen.matches_all:
        return True
    fields = {"kind": info.kind.value, "name": info.name, "parent": info.parent, "labels": info.labels}
    return chosen.match(MappingAdaptor(fields))
