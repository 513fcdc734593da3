"""Where a bucket lies: in a space of LMDB's map, or with others in one record (`small`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, Union

from moored.kernel.errors import DataLoss, InvalidArgument, Unknown
from moored.kernel.ports.metadata import Entry, Tree
from moored.plugins.metadata.lmdb import names
from moored.plugins.metadata.lmdb.layout import (
    BUCKET,
    ID,
    ID_SIZE,
    MORE,
    NUMBERED,
    PIECE,
    SMALL,
    VALUE,
    VALUE_TAG,
)
from moored.plugins.metadata.lmdb.records import Record, Records
from moored.plugins.metadata.lmdb.small import Home, Small, decoded

Place: TypeAlias = Union["Space", Small]
"""Both have the same methods; what they are given has been checked by `LmdbBucket`."""


class Space:
    """A bucket whose entries are records of their own."""

    __slots__ = ("id", "records")

    moved: None = None
    dead = False
    """Both as in `Small`; it stays where it is, and what is deleted is told by its id."""

    def __init__(self, records: Records, id_: bytes) -> None:
        self.records = records
        self.id = id_

    def is_in_dead_space(self) -> bool:
        """Whether it was deleted in this transaction."""
        return self.id in self.records.dead

    def find(self, name: bytes) -> bytes | Place | None:
        """Give the value or the bucket of that name."""
        if not name:
            return None
        records = self.records
        if records.homes and (home := records.homes.get(self.id + name)) is not None:
            return home.top()
        record = names.find(records, self.id, name)
        return None if record is None else self._read(name, record)

    def _read(self, name: bytes, record: bytes) -> bytes | Place:
        tag = record[0] if record else -1
        if tag == VALUE:
            return record[1:]
        if tag in (SMALL, NUMBERED):
            return Home.read(self.records, self.id, name, record).top()
        if tag == BUCKET and len(record) == 1 + ID_SIZE:
            return Space(self.records, record[1:])
        raise DataLoss(f"metadata store is damaged: unknown record {record[:16]!r} of name {name!r}")

    def put(self, name: bytes, value: bytes) -> None:
        """Put a value. Raises as the port's `put` for what is there, and where there is no room."""
        found = self.find(name)
        if found is not None and not isinstance(found, bytes):
            raise Unknown("incompatible value")
        self.records.need_room()
        self.store(name, value)

    def store(self, name: bytes, value: bytes) -> None:
        """Put a value over the one that may be there."""
        names.store(self.records, self.id, name, VALUE_TAG + value)

    def drop(self, name: bytes) -> None:
        """Delete a value."""
        names.drop(self.records, self.id, name)

    def make_bucket(self, name: bytes) -> Place:
        """Make a bucket, small at first."""
        return Home.made(self.records, self.id, name).top()

    def drop_bucket(self, name: bytes, place: Place) -> None:
        """Delete a bucket of that name, which lies at `place`, with all that is in it."""
        if isinstance(place, Small):
            place.home.drop()
            return
        names.drop(self.records, self.id, name)
        doomed = [place.id]
        while doomed:
            space = doomed.pop()
            self.records.dead.add(space)
            doomed += self.records.sweep(space)

    def following(self, name: bytes, *, strictly: bool) -> Entry | None:
        """Give the entry at or above `name` (strictly: above)."""
        self.records.flush()
        return _entry(names.following(self.records, self.id, name, strictly=strictly))

    def preceding(self, name: bytes | None) -> Entry | None:
        """Give the entry below `name` (None: the last)."""
        self.records.flush()
        return _entry(names.preceding(self.records, self.id, name))

    def walk(self, prefix: bytes) -> Iterator[Entry]:
        """Yield the entries whose names start with `prefix`, while nothing is written."""
        for name, record in self._records(prefix):
            yield name, (record[1:] if record[0] == VALUE else None)

    def trees(self) -> Iterator[tuple[bytes, Tree]]:
        """Yield the name and tree of each bucket in it, while nothing is written."""
        for name, record in self._records(b""):
            if record[0] == SMALL:
                yield name, decoded(record)
            elif record[0] != VALUE:
                found = self._read(name, record)
                assert not isinstance(found, bytes)
                yield name, found.tree()

    def tree(self) -> Tree:
        """Give all that is in it."""
        self.records.flush()
        found: dict[bytes, bytes | Tree] = {}
        for name, record in self._records(b""):
            entry = self._read(name, record)
            found[name] = entry if isinstance(entry, bytes) else entry.tree()
        return found

    def sequence(self) -> int:
        """Give the sequence number."""
        record = self.records.get(self.id)
        if record is None:
            return 0
        if len(record) != ID_SIZE:
            raise DataLoss(f"metadata store is damaged: {record[:16]!r} is no sequence number")
        return int(ID.unpack(record)[0])

    def set_sequence(self, number: int) -> None:
        """Set the sequence number."""
        if number:
            self.records.put(self.id, ID.pack(number))
        else:
            self.records.delete(self.id)

    def _records(self, prefix: bytes) -> Iterator[Record]:
        """Yield names that start with `prefix` and their records, each found by one step of a cursor."""
        space = self.id
        start = space + prefix[:PIECE]
        last = b""
        for key, record in self.records.walk(start):
            if len(key) == ID_SIZE:
                continue  # the bucket's own record is no entry
            tag = names.tag((key, record))
            if tag == MORE or len(prefix) > PIECE:
                break
            last = key[ID_SIZE:]
            yield last, record
        else:
            return
        # Long names lie in spaces of their own, which are looked into step by step.
        found = names.following(self.records, space, last or prefix, strictly=bool(last))
        while found is not None and found[0].startswith(prefix):
            yield found
            found = names.following(self.records, space, found[0], strictly=True)


class Root(Space):
    """The bucket at the top of a database, which holds only buckets."""

    __slots__ = ()

    def put(self, name: bytes, value: bytes) -> None:
        """Refuse it."""
        raise InvalidArgument(f"key {name!r} would stand in the root, which holds only buckets")


def _entry(found: Record | None) -> Entry | None:
    if found is None:
        return None
    name, record = found
    return name, (record[1:] if record[0] == VALUE else None)
