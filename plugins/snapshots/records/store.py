"""The records of one snapshotter: every rule on names, kinds and parents is kept here, inside transactions.

v1
├── snapshots                 sequence: the highest id ever taken
│   └── NAME                  id, kind, parent, createdat, updatedat; committed ones also inodes, size
│       └── labels            KEY -> value
└── parents                   uvarint(parent's id) 00 uvarint(id) -> NAME

Source: the contract's section on the snapshotters' metadata.db. Errors are those of `moored.kernel.ports.snapshots`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from moored.kernel.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Also, Info, Kind, Labels, Usage
from moored.kernel.records import (
    decode_text,
    decode_time,
    decode_uvarint,
    decode_zigzag,
    encode_text,
    encode_time,
    encode_uvarint,
    encode_zigzag,
    read_labels,
    write_labels,
)
from moored.plugins.snapshots.records.codec import decode_kind, encode_kind

TOP: Final = b"v1"
SNAPSHOTS: Final = b"snapshots"
PARENTS: Final = b"parents"
MAX_CHAINS: Final = 256
"""Chains of parents that are remembered."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as its files are found: by id, not by name. parents are ids, the nearest first."""

    id: int
    info: Info
    parents: tuple[int, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is."""
        return self.info.kind


class Records:
    """The records in one database, which belongs to them alone."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._chains = Chains()

    @property
    def database(self) -> Database:
        """Where they are."""
        return self._db

    async def start(self, *, may_create: bool) -> int | None:
        """Give the highest id ever taken; None, and nothing done, if there are no records and none may be made."""

        def change(root: Bucket) -> int | None:
            top = root.bucket(TOP)
            if top is None or top.bucket(SNAPSHOTS) is None:
                if not may_create:
                    return None
                top = root.create_bucket_if_missing(TOP)
            top.create_bucket_if_missing(PARENTS)
            return top.create_bucket_if_missing(SNAPSHOTS).sequence()

        return await self._db.update(change)

    # --- reading ------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Snapshot:
        """Give one snapshot, without its parents. Raises NotFound."""
        with self._view() as snapshots:
            return _read(name, _record(snapshots, name))

    def resolve(self, name: str) -> Snapshot:
        """Give one snapshot with its parents. Raises NotFound, DataLoss for a chain that is broken."""
        with self._view() as snapshots:
            snapshot = _read(name, _record(snapshots, name))
            return replace(snapshot, parents=self._chains.down_from(snapshots, snapshot.info.parent))

    def usage(self, name: str) -> Usage:
        """Give what was recorded at the commit; zero for others. Raises NotFound."""
        with self._view() as snapshots:
            return _usage(_record(snapshots, name))

    def plan(self, key: str, parent: str) -> tuple[int, ...]:
        """Check that `key` can be made on `parent` and give the ids of the parents to be. Raises as prepare."""
        with self._view() as snapshots:
            _check_new(snapshots, key)
            return _parents_of_new(snapshots, parent, self._chains)

    def plan_commit(self, name: str, key: str, parent: str) -> Snapshot:
        """Check that `key` can be committed as `name` and give it with the parents to be. Raises as commit."""
        with self._view() as snapshots:
            return _check_commit(snapshots, name, key, parent, self._chains)

    def page(self, after: str | None, size: int) -> list[Snapshot]:
        """Give up to `size` snapshots that follow the name `after`, in order, without their parents."""
        found: list[Snapshot] = []
        with self._view() as snapshots:
            cursor = snapshots.cursor()
            entry = cursor.first() if after is None else cursor.seek(encode_text(after) + b"\0")
            while entry is not None and len(found) < size:
                record = snapshots.bucket(entry[0])
                if record is not None:
                    found.append(_read(decode_text(entry[0]), record))
                entry = cursor.next()
        return found

    def everything(self) -> list[Snapshot]:
        """Give all snapshots; as parents only the nearest one."""
        found = []
        with self._view() as snapshots:
            for name, _ in snapshots.items():  # noqa: PERF102 - a bucket is no dict
                record = snapshots.bucket(name)
                if record is None:
                    continue
                snapshot = _read(decode_text(name), record)
                above = snapshots.bucket(encode_text(snapshot.info.parent)) if snapshot.info.parent else None
                found.append(replace(snapshot, parents=(_id(above),)) if above is not None else snapshot)
        return found

    # --- writing ------------------------------------------------------------------------------------------------------

    async def create(
        self, id_: int, info: Info, make: Callable[[Snapshot], list[Mount]], also: Also | None = None
    ) -> list[Mount]:
        """Record a new active snapshot or view, and give what `make` gives of it, called before that is durable.

        While `make` runs no other change does; `also` comes before it. Raises as prepare, and what they raise.
        """

        def change(root: Bucket) -> list[Mount]:
            snapshots, parents = _buckets(root)
            _check_new(snapshots, info.name)
            chain = _parents_of_new(snapshots, info.parent, self._chains)
            record = snapshots.create_bucket(encode_text(info.name))
            # Ids are given out by the snapshotter, before the files are made; the sequence only remembers the highest.
            snapshots.set_sequence(max(snapshots.sequence(), id_))
            snapshot = Snapshot(id_, info, chain)
            _write(record, snapshot)
            if chain:
                parents.put(_link(chain[0], id_), encode_text(info.name))
            if also is not None:
                also(root)
            return make(snapshot)

        return await self._db.update(change)

    async def commit(
        self, name: str, key: str, labels: Labels, parent: str, usage: Usage, *, also: Also | None = None
    ) -> None:
        """Move an active snapshot's record to its name, and then do `also`. Raises as commit, and what that raises."""

        def change(root: Bucket) -> None:
            snapshots, parents = _buckets(root)
            snapshot = _check_commit(snapshots, name, key, parent, self._chains)
            now = time.time_ns()
            info = replace(snapshot.info, name=name, kind=Kind.COMMITTED, labels=labels, created_at=now, updated_at=now)
            snapshots.delete_bucket(encode_text(key))
            record = snapshots.create_bucket(encode_text(name))
            _write(record, replace(snapshot, info=info))
            record.put(b"inodes", encode_zigzag(usage.inodes))
            record.put(b"size", encode_zigzag(usage.size))
            if snapshot.parents:
                parents.put(_link(snapshot.parents[0], snapshot.id), encode_text(name))
            if also is not None:
                also(root)

        await self._db.update(change)

    async def remove(self, name: str) -> Snapshot:
        """Remove a record and give it, with its nearest parent. Raises as the port's remove."""

        def change(root: Bucket) -> Snapshot:
            snapshots, parents = _buckets(root)
            snapshot = _read(name, _record(snapshots, name))
            if next(parents.items(_link(snapshot.id)), None) is not None:
                raise FailedPrecondition("cannot remove snapshot with child")
            snapshots.delete_bucket(encode_text(name))
            if not snapshot.info.parent:
                return snapshot
            above = snapshots.bucket(encode_text(snapshot.info.parent))
            if above is None:
                return snapshot  # damaged, and being removed
            parents.delete(_link(_id(above), snapshot.id))
            return replace(snapshot, parents=(_id(above),))

        return await self._db.update(change)

    async def update(self, name: str, labels: Labels, paths: Sequence[str]) -> Snapshot:
        """Change labels. Raises as the port's update."""

        def change(root: Bucket) -> Snapshot:
            snapshots, _ = _buckets(root)
            record = _record(snapshots, name)
            snapshot = _read(name, record)
            merged = _merged(name, snapshot.info.labels, labels, paths)
            info = replace(snapshot.info, labels=merged, updated_at=time.time_ns())
            write_labels(record, info.labels)
            record.put(b"updatedat", encode_time(info.updated_at))
            return replace(snapshot, info=info)

        return await self._db.update(change)

    async def close(self) -> None:
        """Close the database; again is harmless."""
        await self._db.close()

    @contextmanager
    def _view(self) -> Iterator[Bucket]:
        with self._db.view() as root:
            yield _buckets(root)[0]


def _buckets(root: Bucket) -> tuple[Bucket, Bucket]:
    top = root.bucket(TOP)
    snapshots = None if top is None else top.bucket(SNAPSHOTS)
    parents = None if top is None else top.bucket(PARENTS)
    if snapshots is None or parents is None:
        raise DataLoss("the snapshot records have lost their buckets")
    return snapshots, parents


def _record(snapshots: Bucket, name: str) -> Bucket:
    if not name:
        raise InvalidArgument("the snapshot key is empty")
    record = snapshots.bucket(encode_text(name))
    if record is None:
        raise NotFound(f"snapshot {name} does not exist")
    return record


def _id(record: Bucket) -> int:
    return decode_uvarint(record.get(b"id") or b"")


def _read(name: str, record: Bucket) -> Snapshot:
    info = Info(
        name=name,
        kind=decode_kind(record.get(b"kind")),
        parent=decode_text(record.get(b"parent") or b""),
        labels=read_labels(record),
        created_at=decode_time(record.get(b"createdat")),
        updated_at=decode_time(record.get(b"updatedat")),
    )
    return Snapshot(_id(record), info)


def _usage(record: Bucket) -> Usage:
    size, inodes = record.get(b"size"), record.get(b"inodes")
    return Usage(0 if size is None else decode_zigzag(size), 0 if inodes is None else decode_zigzag(inodes))


def _write(record: Bucket, snapshot: Snapshot) -> None:
    info = snapshot.info
    record.put(b"id", encode_uvarint(snapshot.id))
    record.put(b"kind", encode_kind(info.kind))
    if info.parent:
        record.put(b"parent", encode_text(info.parent))
    record.put(b"createdat", encode_time(info.created_at))
    record.put(b"updatedat", encode_time(info.updated_at))
    write_labels(record, info.labels)


def _link(parent: int, child: int | None = None) -> bytes:
    """Give the key of a child in `parents`, or the beginning of all of a parent's keys."""
    return encode_uvarint(parent) + b"\0" + (b"" if child is None else encode_uvarint(child))


class Chains:
    """The ids from a committed snapshot down to the base, remembered: what is below it never changes.

    An id is never another snapshot's, and while one has a child it cannot be removed. Threads may share it.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, ...]] = {}

    def down_from(self, snapshots: Bucket, parent: str) -> tuple[int, ...]:
        """Give the ids from `parent`, a committed one, down to the base; none for "". Raises DataLoss."""
        chain: list[int] = []
        seen: set[str] = set()
        below: tuple[int, ...] = ()
        while parent:
            record = snapshots.bucket(encode_text(parent))
            if record is None or parent in seen:
                raise DataLoss(f"snapshot {parent!r} is {'its own' if parent in seen else 'missing as a'} parent")
            seen.add(parent)
            chain.append(_id(record))
            if (known := self._known.get(chain[-1])) is not None:
                below = known[1:]
                break
            parent = decode_text(record.get(b"parent") or b"")
        found = (*chain, *below)
        if len(chain) > 1 or (found and found[0] not in self._known):
            if len(self._known) >= MAX_CHAINS:
                self._known.clear()
            self._known[found[0]] = found
        return found


def _check_new(snapshots: Bucket, name: str) -> None:
    if not name:
        raise InvalidArgument("the snapshot key is empty")
    if snapshots.bucket(encode_text(name)) is not None:
        raise AlreadyExists(f'snapshot "{name}"')


def _parent_kind(snapshots: Bucket, parent: str) -> Kind:
    record = snapshots.bucket(encode_text(parent))
    if record is None:
        raise NotFound(f"parent snapshot {parent} does not exist")
    return decode_kind(record.get(b"kind"))


def _parents_of_new(snapshots: Bucket, parent: str, chains: Chains) -> tuple[int, ...]:
    if not parent:
        return ()
    if (kind := _parent_kind(snapshots, parent)) is not Kind.COMMITTED:
        raise InvalidArgument(f"parent {parent!r} is {_described(kind)}, a parent must be committed")
    return chains.down_from(snapshots, parent)


def _check_commit(snapshots: Bucket, name: str, key: str, parent: str, chains: Chains) -> Snapshot:
    snapshot = _read(key, _record(snapshots, key))
    _check_new(snapshots, name)
    if snapshot.kind is not Kind.ACTIVE:
        raise FailedPrecondition(f"snapshot {key!r} is {_described(snapshot.kind)}, wanted an active one")
    old = snapshot.info.parent
    if parent and old and parent != old:
        raise InvalidArgument(f"snapshot {key!r} has the parent {old!r}, it cannot become {parent!r}")
    if parent and not old:
        if (kind := _parent_kind(snapshots, parent)) is not Kind.COMMITTED:
            raise FailedPrecondition(f"parent {parent!r} is {_described(kind)}, a parent must be committed")
        snapshot = replace(snapshot, info=replace(snapshot.info, parent=parent))
    return replace(snapshot, parents=chains.down_from(snapshots, snapshot.info.parent))


def _described(kind: Kind) -> str:
    return "a view" if kind is Kind.VIEW else kind.value


def _merged(name: str, old: Labels, new: Labels, paths: Sequence[str]) -> dict[str, str]:
    merged = dict(old)
    for path in paths or ("labels",):
        if path == "labels":
            merged = dict(new)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            merged[key] = new.get(key, "")
        else:
            raise InvalidArgument(f'cannot update "{path}" field on snapshot "{name}"')
    return {key: value for key, value in merged.items() if value}
