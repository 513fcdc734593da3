"""Buckets and cursors of the port, over the records of one LMDB transaction."""

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
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME, MAX_VALUE, Entry
from moored.plugins.metadata.lmdb import names
from moored.plugins.metadata.lmdb.layout import BUCKET, BUCKET_TAG, ID, ID_SIZE, ROOT, VALUE, VALUE_TAG
from moored.plugins.metadata.lmdb.records import Record, Records

SEQUENCES = 1 << 64


class LmdbBucket:
    """One bucket; a handle that costs nothing and holds nothing but the transaction."""

    __slots__ = ("_records", "_space")

    def __init__(self, records: Records, space: bytes = ROOT) -> None:
        self._records = records
        self._space = space

    def get(self, key: bytes) -> bytes | None:
        """See the port."""
        record = self._find(key)
        return record[1:] if record is not None and record[0] == VALUE else None

    def put(self, key: bytes, value: bytes) -> None:
        """See the port."""
        self._writable()
        if not key:
            raise Unknown("key required")
        if len(key) > MAX_KEY:
            raise Unknown("key too large")
        if len(value) > MAX_VALUE:
            raise Unknown("value too large")
        if self._space == ROOT:
            raise InvalidArgument(f"key {key!r} would stand in the root, which holds only buckets")
        record = self._find(key)
        if record is not None and record[0] != VALUE:
            raise Unknown("incompatible value")
        names.store(self._records, self._space, key, VALUE_TAG + value)

    def delete(self, key: bytes) -> None:
        """See the port."""
        self._writable()
        record = self._find(key)
        if record is None:
            return
        if record[0] != VALUE:
            raise Unknown("incompatible value")
        names.drop(self._records, self._space, key)

    def bucket(self, name: bytes) -> LmdbBucket | None:
        """See the port."""
        record = self._find(name)
        return LmdbBucket(self._records, record[1:]) if record is not None and record[0] == BUCKET else None

    def create_bucket(self, name: bytes) -> LmdbBucket:
        """See the port."""
        self._nameable(name)
        record = self._find(name)
        if record is None:
            return self._new(name)
        if record[0] == BUCKET:
            raise AlreadyExists("bucket already exists")
        raise Unknown("incompatible value")

    def create_bucket_if_missing(self, name: bytes) -> LmdbBucket:
        """See the port."""
        self._nameable(name)
        record = self._find(name)
        if record is None:
            return self._new(name)
        if record[0] != BUCKET:
            raise Unknown("incompatible value")
        return LmdbBucket(self._records, record[1:])

    def delete_bucket(self, name: bytes) -> None:
        """See the port."""
        self._writable()
        record = self._find(name)
        if record is None:
            raise NotFound("bucket not found")
        if record[0] != BUCKET:
            raise Unknown("incompatible value")
        names.drop(self._records, self._space, name)
        doomed = [record[1:]]
        while doomed:
            space = doomed.pop()
            self._records.dead.add(space)
            doomed += self._records.sweep(space)

    def cursor(self) -> LmdbCursor:
        """See the port."""
        self._alive()
        return LmdbCursor(self)

    def items(self, prefix: bytes = b"") -> Iterator[Entry]:
        """See the port."""
        entry = self.following(prefix, strictly=False)
        while entry is not None and entry[0].startswith(prefix):
            yield entry
            entry = self.following(entry[0], strictly=True)

    def sequence(self) -> int:
        """See the port."""
        self._alive()
        record = self._records.get(self._space)
        if record is None:
            return 0
        if len(record) != ID_SIZE:
            raise DataLoss(f"metadata store is damaged: {record[:16]!r} is no sequence number")
        return int(ID.unpack(record)[0])

    def next_sequence(self) -> int:
        """See the port."""
        number = (self.sequence() + 1) % SEQUENCES
        self.set_sequence(number)
        return number

    def set_sequence(self, number: int) -> None:
        """See the port."""
        self._writable()
        if not 0 <= number < SEQUENCES:
            raise InvalidArgument(f"sequence {number} does not fit in 64 bits without sign")
        if number:
            self._records.put(self._space, ID.pack(number))
        else:
            self._records.delete(self._space)

    def following(self, name: bytes, *, strictly: bool) -> Entry | None:
        """Give the entry at or above `name` (strictly: above)."""
        self._alive()
        return _entry(names.following(self._records, self._space, name, strictly=strictly))

    def preceding(self, name: bytes | None) -> Entry | None:
        """Give the entry below `name` (None: the last)."""
        self._alive()
        return _entry(names.preceding(self._records, self._space, name))

    def _new(self, name: bytes) -> LmdbBucket:
        space = self._records.new_space()
        names.store(self._records, self._space, name, BUCKET_TAG + space)
        return LmdbBucket(self._records, space)

    def _find(self, name: bytes) -> bytes | None:
        self._alive()
        if not name:
            return None
        record = names.find(self._records, self._space, name)
        if record is None:
            return None
        if not record or record[0] > BUCKET or (record[0] == BUCKET and len(record) != 1 + ID_SIZE):
            raise DataLoss(f"metadata store is damaged: unknown record {record[:16]!r} of name {name!r}")
        return record

    def _nameable(self, name: bytes) -> None:
        self._writable()
        if not name:
            raise Unknown("bucket name required")
        if len(name) > MAX_NAME:
            raise Unknown("key too large")

    def _writable(self) -> None:
        self._alive()
        if not self._records.writable:
            raise Internal("tx not writable")

    def _alive(self) -> None:
        if not self._records.open:
            raise Internal("tx closed")
        if self._records.dead and self._space in self._records.dead:
            raise NotFound("bucket not found")


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


def _entry(found: Record | None) -> Entry | None:
    if found is None:
        return None
    name, record = found
    return name, (record[1:] if record[0] == VALUE else None)
