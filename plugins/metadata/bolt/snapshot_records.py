"""The records of snapshots: what is done to them inside one transaction.

    v1/NAMESPACE/snapshots/SNAPSHOTTER          sequence: the greatest number in a raw name
      └── KEY   name (of the raw snapshotter, `NAMESPACE/NUMBER/KEY`), parent, createdat, updatedat
          ├── children   keys of those whose parent it is
          ├── labels
          └── commit     while it is committed: the raw name to be, the name (key), the lease, the labels

The last is ours; containerd does not know it and passes it over. It is there while the raw snapshotter is at work, so
that a crash in between can be put right. Source: contracts/meta-db.md 2, semantics 3.5.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.filters import quote
from moored.kernel.namespaces import normalise_labels, validate_labels
from moored.kernel.ports.metadata import Bucket
from moored.kernel.records import (
    UPDATED_AT,
    decode_text,
    encode_text,
    encode_time,
    put_times,
    read_labels,
    read_times,
    write_labels,
)
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.leases import add_to_lease, remove_from_lease

LABELS_PREFIX: Final = "info.Labels"
"""What errors about labels begin with."""

_NAME: Final = b"name"
_PARENT: Final = b"parent"
_CHILDREN: Final = b"children"
_COMMIT: Final = b"commit"
_KEY: Final = b"key"
_LEASE: Final = b"lease"
_REBASED: Final = b"rebased"


@dataclass(frozen=True, slots=True)
class Place:
    """One key space, the snapshots of a namespace on a snapshotter, and the lease of the call, "" without one."""

    namespace: str
    snapshotter: str
    lease: str = ""

    @property
    def resource(self) -> str:
        """Their type as leases know it."""
        return f"snapshots/{self.snapshotter}"

    def hold(self, root: Bucket, key: str) -> None:
        """Put a snapshot under the lease. Raises NotFound for an unknown lease."""
        add_to_lease(root, self.namespace, self.lease, self.resource, key)

    def let_go(self, root: Bucket, key: str) -> None:
        """Take a snapshot from the lease."""
        remove_from_lease(root, self.namespace, self.lease, self.resource, key)

    def bucket(self, root: Bucket) -> Bucket | None:
        """Give the bucket of the records, None where there was never one."""
        return schema.object_bucket(root, self.namespace, schema.SNAPSHOTS, self.snapshotter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A snapshot as its namespace knows it; raw is its name in the raw snapshotter. Times are ns since 1970."""

    key: str
    raw: str
    parent: str = ""
    labels: Mapping[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit under way: of `key`, to `name`, which the raw snapshotter is to call `raw`."""

    place: Place
    key: str
    name: str
    raw: str
    parent: str = ""
    rebased: bool = False
    """The parent is new: it was not that of `key` before."""
    labels: Mapping[str, str]


def raw_name(place: Place, number: int, key: str) -> str:
    """Give the name for the raw snapshotter."""
    return f"{place.namespace}/{number}/{key}"


class Shelf:
    """The records of one place, as a transaction sees them."""

    __slots__ = ("_bucket", "_place", "_root")

    def __init__(self, root: Bucket, place: Place) -> None:
        self._root = root
        self._place = place
        self._bucket = place.bucket(root)

    def has(self, key: str) -> bool:
        """Tell whether there is one."""
        return self._record(key) is not None

    def get(self, key: str) -> Record:
        """Give one. Raises NotFound."""
        return _read(key, self._known(key))

    def raw_parent(self, key: str) -> str:
        """Give the raw name of one that is to be a parent, "" for none. Raises NotFound."""
        return _text(self._parent(key), _NAME) if key else ""

    def sequence(self) -> int:
        """Give the greatest number that raw names have had."""
        return 0 if self._bucket is None else self._bucket.sequence()

    def page(self, after: str | None, size: int) -> list[Record]:
        """Give up to `size` that follow a key (None: the first ones), in order."""
        found: list[Record] = []
        if self._bucket is None:
            return found
        cursor = self._bucket.cursor()
        entry = cursor.first() if after is None else cursor.seek(encode_text(after) + b"\0")
        while entry is not None and len(found) < size:
            record = self._bucket.bucket(entry[0]) if entry[1] is None else None
            if record is not None:
                found.append(_read(decode_text(entry[0]), record))
            entry = cursor.next()
        return found

    # --- for updates --------------------------------------------------------------------------------------------------

    def add(self, record: Record, *, raw_parent: str, number: int) -> None:
        """Write a new record and put the snapshot under the lease.

        Raises AlreadyExists; NotFound for the lease, or the parent if it is not the one with that raw name any more.
        """
        bucket = self._made()
        self._place.hold(self._root, record.key)
        if self.has(record.key):
            raise AlreadyExists(f"snapshot {quote(record.key)}")
        if record.parent:
            above = self._parent(record.parent)
            if _text(above, _NAME) != raw_parent:
                raise NotFound(f"parent snapshot {record.parent} does not exist")
            _adopt(above, record.key)
        _write(bucket.create_bucket(encode_text(record.key)), record)
        self._count(number)

    def begin_commit(self, commit: Commit, number: int) -> None:
        """Note what is about to be done; a new parent holds the snapshot at once. Raises NotFound, AlreadyExists."""
        self._begin(commit, number)
        record = self._known(commit.key)
        if record.bucket(_COMMIT) is not None:
            record.delete_bucket(_COMMIT)
        noted = record.create_bucket(_COMMIT)
        noted.put(_NAME, encode_text(commit.raw))
        noted.put(_KEY, encode_text(commit.name))
        noted.put(_LEASE, encode_text(self._place.lease))
        noted.put(_REBASED, b"1" if commit.rebased else b"")
        write_labels(noted, commit.labels)

    def finish_commit(self, commit: Commit) -> None:
        """Put the record under its new name, with the labels of the commit. Raises NotFound, AlreadyExists."""
        old = self.get(commit.key)
        if self.has(commit.name):
            raise AlreadyExists(f"snapshot {quote(commit.name)}")
        self._move(commit, old.parent)

    def commit_at_once(self, commit: Commit, number: int) -> None:
        """Do both, where the raw snapshotter's own record changes in the same update."""
        self._move(commit, self._begin(commit, number))

    def drop_commit(self, commit: Commit) -> None:
        """Forget a commit that was not carried out; without effect if its record is gone."""
        record = self._record(commit.key)
        if record is None or record.bucket(_COMMIT) is None:
            return
        record.delete_bucket(_COMMIT)
        self._place.let_go(self._root, commit.name)
        if commit.rebased:
            record.delete(_PARENT)
            self._leave(commit.parent, commit.key)

    def relabel(self, record: Record) -> Record:
        """Write the labels of a record and give it with the time of that. Raises NotFound."""
        bucket = self._known(record.key)
        now = time.time_ns()
        write_labels(bucket, record.labels)
        bucket.put(UPDATED_AT, encode_time(now))
        return replace(record, updated_at=now)

    def remove(self, key: str) -> None:
        """Remove a record, from the lease too. Raises NotFound, FailedPrecondition as the port's remove."""
        record = self._known(key)
        if not schema.is_empty(record.bucket(_CHILDREN)):
            raise FailedPrecondition("cannot remove snapshot with child")
        if parent := _text(record, _PARENT):
            self._leave(parent, key)
        self._made().delete_bucket(encode_text(key))
        self._place.let_go(self._root, key)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _begin(self, commit: Commit, number: int) -> str:
        """Check the names, put the snapshot under its lease and new parent; give the parent that it has then."""
        record = self._known(commit.key)
        if self.has(commit.name):
            raise AlreadyExists(f"snapshot {quote(commit.name)}")
        self._count(number)
        # An unknown lease is told now, while nothing has been done.
        self._place.hold(self._root, commit.name)
        if commit.rebased:
            _adopt(self._parent(commit.parent), commit.key)
            record.put(_PARENT, encode_text(commit.parent))
        return _text(record, _PARENT)

    def _move(self, commit: Commit, parent: str) -> None:
        bucket = self._made()
        now = time.time_ns()
        record = Record(
            key=commit.name, raw=commit.raw, parent=parent, labels=commit.labels, created_at=now, updated_at=now
        )
        if parent:
            self._leave(parent, commit.key)
            _adopt(schema.made(bucket, parent), commit.name)
        bucket.delete_bucket(encode_text(commit.key))
        _write(bucket.create_bucket(encode_text(commit.name)), record)
        self._place.let_go(self._root, commit.key)

    def _made(self) -> Bucket:
        if self._bucket is None:
            place = self._place
            self._bucket = schema.made_object_bucket(self._root, place.namespace, schema.SNAPSHOTS, place.snapshotter)
        return self._bucket

    def _count(self, number: int) -> None:
        bucket = self._made()
        bucket.set_sequence(max(bucket.sequence(), number))

    def _record(self, key: str) -> Bucket | None:
        return None if self._bucket is None else self._bucket.bucket(encode_text(key))

    def _known(self, key: str) -> Bucket:
        record = self._record(key)
        if record is None:
            raise NotFound(f"snapshot {key} does not exist")
        return record

    def _parent(self, key: str) -> Bucket:
        record = self._record(key)
        if record is None:
            raise NotFound(f"parent snapshot {key} does not exist")
        return record

    def _leave(self, parent: str, child: str) -> None:
        above = self._record(parent)
        children = None if above is None else above.bucket(_CHILDREN)
        if children is not None:
            children.delete(encode_text(child))


def commits(root: Bucket, snapshotter: str) -> list[Commit]:
    """Give all commits that are noted, of all namespaces."""
    found: list[Commit] = []
    for namespace, below in schema.namespaces(root):
        for key, record in schema.records(schema.path(below, schema.SNAPSHOTS, snapshotter)):
            noted = record.bucket(_COMMIT)
            if noted is not None:
                found.append(
                    Commit(
                        place=Place(namespace, snapshotter, _text(noted, _LEASE)),
                        key=key,
                        name=_text(noted, _KEY),
                        raw=_text(noted, _NAME),
                        parent=_text(record, _PARENT),
                        rebased=bool(noted.get(_REBASED)),
                        labels=read_labels(noted),
                    )
                )
    return found


def changed_labels(record: Record, labels: Mapping[str, str], paths: tuple[str, ...]) -> dict[str, str]:
    """Give what the labels of a record become by an update with these paths. Raises InvalidArgument."""
    merged = dict(record.labels) if paths else dict(labels)
    for path in paths:
        if path == "labels":
            merged = dict(labels)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            merged[key] = labels.get(key, "")
        else:
            raise InvalidArgument(f"cannot update {quote(path)} field on snapshot {quote(record.key)}")
    validate_labels(merged, LABELS_PREFIX)
    return normalise_labels(merged)


def _read(key: str, record: Bucket) -> Record:
    created, updated = read_times(record)
    return Record(
        key=key,
        raw=_text(record, _NAME),
        parent=_text(record, _PARENT),
        labels=read_labels(record),
        created_at=created,
        updated_at=updated,
    )


def _write(bucket: Bucket, record: Record) -> None:
    bucket.put(_NAME, encode_text(record.raw))
    if record.parent:
        bucket.put(_PARENT, encode_text(record.parent))
    put_times(bucket, record.created_at, record.updated_at)
    write_labels(bucket, record.labels)


def _adopt(above: Bucket, child: str) -> None:
    above.create_bucket_if_missing(_CHILDREN).put(encode_text(child), b"")


def _text(bucket: Bucket, name: bytes) -> str:
    return decode_text(bucket.get(name) or b"")
