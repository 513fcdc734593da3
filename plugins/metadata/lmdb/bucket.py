"""Buckets and cursors of the port: the rules that hold wherever a bucket lies (`spaces`, `small`)."""

from __future__ import annotations

from collections.abc import Iterator

from moored.kernel.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unknown,
)
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME, MAX_VALUE, Entry, Tree
from moored.plugins.metadata.lmdb import names
from moored.plugins.metadata.lmdb.layout import BUCKET, BUCKET_TAG, ID_SIZE, ROOT
from moored.plugins.metadata.lmdb.records import Records
from moored.plugins.metadata.lmdb.spaces import Place, Root

SEQUENCES = 1 << 64


class LmdbBucket:
    """One bucket; a handle that costs nothing and holds nothing but the transaction."""

    __slots__ = ("_place",)

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def records(self) -> Records:
        """The records of its transaction."""
        return self._place.records

    def get(self, key: bytes) -> bytes | None:
        """See the port."""
        found = self._reached().find(key)
        return found if isinstance(found, bytes) else None

    def put(self, key: bytes, value: bytes) -> None:
        """See the port."""
        place = self._writable()
        if not key:
            raise Unknown("key required")
        if len(key) > MAX_KEY:
            raise Unknown("key too large")
        if len(value) > MAX_VALUE:
            raise Unknown("value too large")
        place.put(key, bytes(value))

    def delete(self, key: bytes) -> None:
        """See the port."""
        place = self._writable()
        found = place.find(key)
        if found is None:
            return
        if not isinstance(found, bytes):
            raise Unknown("incompatible value")
        place.drop(key)

    def bucket(self, name: bytes) -> LmdbBucket | None:
        """See the port."""
        found = self._reached().find(name)
        return None if found is None or isinstance(found, bytes) else LmdbBucket(found)

    def create_bucket(self, name: bytes) -> LmdbBucket:
        """See the port."""
        place = self._nameable(name)
        found = place.find(name)
        if found is None:
            return self._new(place, name)
        raise Unknown("incompatible value") if isinstance(found, bytes) else AlreadyExists("bucket already exists")

    def create_bucket_if_missing(self, name: bytes) -> LmdbBucket:
        """See the port."""
        place = self._nameable(name)
        found = place.find(name)
        if found is None:
            return self._new(place, name)
        if isinstance(found, bytes):
            raise Unknown("incompatible value")
        return LmdbBucket(found)

    def delete_bucket(self, name: bytes) -> None:
        """See the port."""
        place = self._writable()
        found = place.find(name)
        if found is None:
            raise NotFound("bucket not found")
        if isinstance(found, bytes):
            raise Unknown("incompatible value")
        place.drop_bucket(name, found)

    def cursor(self) -> LmdbCursor:
        """See the port."""
        self._reached()
        return LmdbCursor(self)

    def items(self, prefix: bytes = b"") -> Iterator[Entry]:
        """See the port."""
        place = self._reached()
        if not place.records.writable:
            yield from place.walk(prefix)
            return
        entry = self.following(prefix, strictly=False)
        while entry is not None and entry[0].startswith(prefix):
            yield entry
            entry = self.following(entry[0], strictly=True)

    def tree(self) -> Tree:
        """See the port."""
        return self._reached().tree()

    def trees(self) -> Iterator[tuple[bytes, Tree]]:
        """See the port."""
        place = self._reached()
        if not place.records.writable:
            yield from place.trees()
            return
        for name, value in self.items():
            below = self.bucket(name) if value is None else None
            if below is not None:
                yield name, below.tree()

    def sequence(self) -> int:
        """See the port."""
        return self._reached().sequence()

    def next_sequence(self) -> int:
        """See the port."""
        number = (self.sequence() + 1) % SEQUENCES
        self.set_sequence(number)
        return number

    def set_sequence(self, number: int) -> None:
        """See the port."""
        place = self._writable()
        if not 0 <= number < SEQUENCES:
            raise InvalidArgument(f"sequence {number} does not fit in 64 bits without sign")
        if number:
            place.records.need_room()
        place.set_sequence(number)

    def following(self, name: bytes, *, strictly: bool) -> Entry | None:
        """Give the entry at or above `name` (strictly: above)."""
        return self._reached().following(name, strictly=strictly)

    def preceding(self, name: bytes | None) -> Entry | None:
        """Give the entry below `name` (None: the last)."""
        return self._reached().preceding(name)

    @staticmethod
    def _new(place: Place, name: bytes) -> LmdbBucket:
        place.records.need_room()
        return LmdbBucket(place.make_bucket(name))

    def _nameable(self, name: bytes) -> Place:
        place = self._writable()
        if not name:
            raise Unknown("bucket name required")
        if len(name) > MAX_NAME:
            raise Unknown("key too large")
        return place

    def _writable(self) -> Place:
        place = self._reached()
        if not place.records.writable:
            raise Internal("tx not writable")
        return place

    def _reached(self) -> Place:
        """Give where the bucket lies now."""
        place = self._place
        records = place.records
        if records.open and not records.dead and not place.dead and place.moved is None:
            return place
        while (moved := place.moved) is not None:
            place = self._place = moved
        if not records.open:
            raise Internal("tx closed")
        if place.dead or (records.dead and place.is_in_dead_space()):
            raise NotFound("bucket not found")
        return place


class LmdbCursor:
    """A position in one bucket, kept as a name."""

    __slots__ = ("_at", "_bucket")

    def __init__(self, bucket: LmdbBucket) -> None:
        self._bucket = bucket
        self._at: bytes | None = None

    def first(self) -> Entry | None:
        """See the port."""
        return self._go(self._bucket.following(b"", strictly=False))

    def last(self) -> Entry | None:
        """See the port."""
        return self._go(self._bucket.preceding(None))

    def next(self) -> Entry | None:
        """See the port."""
        return self.first() if self._at is None else self._go(self._bucket.following(self._at, strictly=True))

    def prev(self) -> Entry | None:
        """See the port."""
        return self._go(self._bucket.preceding(self._at))

    def seek(self, key: bytes) -> Entry | None:
        """See the port."""
        return self._go(self._bucket.following(key, strictly=False))

    def delete(self) -> None:
        """See the port."""
        if self._at is None:
            raise FailedPrecondition("cursor has no position, wanted one at a value")
        self._bucket.delete(self._at)

    def _go(self, entry: Entry | None) -> Entry | None:
        if entry is not None:
            self._at = entry[0]
        return entry


def root_of(records: Records) -> LmdbBucket:
    """Give the root of a store."""
    return LmdbBucket(Root(records, ROOT))


def part_of(records: Records, name: bytes) -> LmdbBucket | None:
    """Give the root of the database of that name in a store; None if there is none."""
    record = names.find(records, ROOT, name)
    if record is None:
        return None
    if record[0] != BUCKET or len(record) != 1 + ID_SIZE:
        raise DataLoss(f"metadata store is damaged: unknown record {record[:16]!r} of database {name!r}")
    return LmdbBucket(Root(records, record[1:]))


def made_part(records: Records, name: bytes) -> LmdbBucket:
    """Make a database of that name in a store, and give its root."""
    records.need_room()
    space = records.new_space()
    names.store(records, ROOT, name, BUCKET_TAG + space)
    return LmdbBucket(Root(records, space))
