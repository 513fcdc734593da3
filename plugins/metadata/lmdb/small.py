"""Small buckets: a bucket and all that is in it in one record, read and written as a whole.

    Home   the record: where it stands, and its tree
    Small  one bucket of the tree, the outermost or one inside of it

What is changed in an update is written when somebody walks the records (`Records.flush`), at the latest in its end. A
tree that has grown too large is spread over a space of its own, and its handles then lead there (`moved`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Union

import msgspec

from moored.kernel.errors import DataLoss, Unknown
from moored.kernel.ports.metadata import Entry, Tree
from moored.plugins.metadata.lmdb import names
from moored.plugins.metadata.lmdb.layout import (
    BUCKET_TAG,
    ID,
    NUMBERED,
    NUMBERED_TAG,
    SMALL_TAG,
    VALUE_TAG,
)

if TYPE_CHECKING:
    from moored.plugins.metadata.lmdb.records import Records
    from moored.plugins.metadata.lmdb.spaces import Place, Space

MAX_BYTES: Final = 32 << 10
"""Bytes of a tree that is written as one record."""
MAX_ENTRIES: Final = 16
"""Entries of its outermost bucket: an object has fewer, what holds objects soon has more."""
MAX_BELOW: Final = 64
"""Entries of any bucket in it; more are spread at once."""

SEQUENCE: Final = b""
"""The name under which the sequence number stands; no entry can have it."""

MutableTree: TypeAlias = dict[bytes, Union[bytes, "MutableTree"]]

CHECKED_LEVELS: Final = 16
"""Buckets in each other whose entries are known to be what they should; objects have fewer."""


def _tree_type() -> Any:
    found: Any = dict[bytes, bytes | dict[Any, Any]]
    for _ in range(CHECKED_LEVELS - 1):
        found = dict[bytes, bytes | found]
    return found


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_tree_type()).decode


def decoded(record: bytes) -> MutableTree:
    """Give the tree in a record. Raises DataLoss."""
    try:
        tree: MutableTree = _decode(memoryview(record)[1:])
    except (msgspec.DecodeError, RecursionError) as error:
        raise _damaged(record) from error
    return tree


def plain(tree: MutableTree) -> Tree:
    """Give a tree without sequence numbers."""
    return {
        name: entry if isinstance(entry, bytes) else plain(entry) for name, entry in tree.items() if name != SEQUENCE
    }


class Home:
    """The record of a small bucket; one for each in an update, and kept there until its end."""

    __slots__ = ("_name", "_numbered", "_places", "_space", "_stored", "changed", "records", "tree")

    def __init__(
        self, records: Records, space: bytes, name: bytes, tree: MutableTree, *, stored: bool, numbered: bool
    ) -> None:
        self.records = records
        self.tree = tree
        self._space = space
        self._name = name
        self._stored = stored
        self._numbered = numbered
        self.changed = False
        self._places: dict[int, Small] = {}
        """The handles in use by the identity of their bucket's dictionary, which they keep alive."""
        if records.writable:
            records.homes[space + name] = self

    @classmethod
    def read(cls, records: Records, space: bytes, name: bytes, record: bytes) -> Home:
        """Give what a record holds. Raises DataLoss."""
        return cls(records, space, name, decoded(record), stored=True, numbered=record[0] == NUMBERED)

    @classmethod
    def made(cls, records: Records, space: bytes, name: bytes) -> Home:
        """Give a new one, written later."""
        home = cls(records, space, name, {}, stored=False, numbered=False)
        home.touch()
        return home

    @property
    def numbered(self) -> bool:
        """Whether there may be sequence numbers in it."""
        return self._numbered

    @property
    def dead(self) -> bool:
        """Whether the space that it stands in was deleted."""
        dead = self.records.dead
        return bool(dead) and self._space in dead

    def top(self) -> Small:
        """Give the outermost bucket."""
        return self.place(self.tree)

    def place(self, tree: MutableTree) -> Small:
        """Give the handle of one of its buckets."""
        if not self.records.writable:
            return Small(self, tree)
        found = self._places.get(id(tree))
        if found is None:
            found = self._places[id(tree)] = Small(self, tree)
        return found

    def touch(self, *, numbered: bool = False) -> None:
        """Note that the tree has changed."""
        self._numbered = self._numbered or numbered
        if not self.changed:
            self.changed = True
            self.records.changed.append(self)

    def drop(self) -> None:
        """Delete it."""
        del self.records.homes[self._space + self._name]
        self.changed = False
        if self._stored:
            names.drop(self.records, self._space, self._name)
        self.bury(self.tree)

    def bury(self, tree: MutableTree) -> None:
        """Note that a bucket of the tree, and what is in it, was deleted."""
        for one in _all(tree):
            place = self._places.pop(id(one), None)
            if place is not None:
                place.dead = True

    def store(self) -> None:
        """Write what has changed."""
        if not self.changed or self.dead:
            return
        self.changed = False
        data = b"" if len(self.tree) > MAX_ENTRIES else self._encoded()
        if not data:
            self.spread()
            return
        names.store(self.records, self._space, self._name, (NUMBERED_TAG if self._numbered else SMALL_TAG) + data)
        self._stored = True

    def _encoded(self) -> bytes:
        """Give the bytes of the tree, none if it is too large or too deep."""
        try:
            data = _encode(self.tree)
        except RecursionError:
            return b""
        return data if len(data) <= MAX_BYTES else b""

    def spread(self) -> None:
        """Turn the outermost bucket into a space."""
        from moored.plugins.metadata.lmdb.spaces import Space

        records = self.records
        space = records.new_space()
        names.store(records, self._space, self._name, BUCKET_TAG + space)
        del records.homes[self._space + self._name]
        self.changed = False
        top = self._places.pop(id(self.tree), None)
        for name, entry in self.tree.items():
            if not isinstance(entry, bytes):
                below = Home(records, space, name, entry, stored=False, numbered=self._numbered)
                self._hand_over(below)
                below.touch()
                below.store()
            elif name == SEQUENCE:
                records.put(space, entry)
            else:
                names.store(records, space, name, VALUE_TAG + entry)
        if top is not None:
            top.moved = Space(records, space)

    def _hand_over(self, below: Home) -> None:
        """Give the handles of buckets in a part of the tree to its new home."""
        if not self._places:
            return
        for one in _all(below.tree):
            place = self._places.pop(id(one), None)
            if place is not None:
                place.home = below
                below._places[id(one)] = place


class Small:
    """One bucket of a home's tree; methods as those of `Space`."""

    __slots__ = ("_tree", "dead", "home", "moved", "records")

    def __init__(self, home: Home, tree: MutableTree) -> None:
        self.home = home
        self.records = home.records
        self.moved: Space | None = None
        """Where it lies since it was spread."""
        self.dead = False
        """Whether it was deleted in this transaction, or one around it in the same record."""
        self._tree = tree

    def is_in_dead_space(self) -> bool:
        """Whether the bucket that holds its record was deleted in this transaction."""
        return self.home.dead

    def find(self, name: bytes) -> bytes | Place | None:
        """See Space."""
        entry = self._tree.get(name) if name else None
        if entry is None or isinstance(entry, bytes):
            return entry
        if not isinstance(entry, dict):
            raise DataLoss(f"metadata store is damaged: {entry!r} under name {name!r} is no value and no bucket")
        return self.home.place(entry)

    def put(self, name: bytes, value: bytes) -> None:
        """See Space."""
        tree = self._tree
        found = tree.get(name)
        if found is not None and not isinstance(found, bytes):
            self.find(name)
            raise Unknown("incompatible value")
        if self.records.full:
            self.records.need_room()
        if len(name) + len(value) > MAX_BYTES or (found is None and len(tree) >= MAX_BELOW):
            self._spread().store(name, value)
            return
        tree[name] = value
        if not self.home.changed:
            self.home.touch()

    def drop(self, name: bytes) -> None:
        """See Space."""
        del self._tree[name]
        self.home.touch()

    def make_bucket(self, name: bytes) -> Place:
        """See Space."""
        if len(name) > MAX_BYTES or len(self._tree) >= MAX_BELOW:
            return self._spread().make_bucket(name)
        tree: MutableTree = {}
        self._tree[name] = tree
        self.home.touch()
        return self.home.place(tree)

    def drop_bucket(self, name: bytes, place: Place) -> None:
        """See Space."""
        assert isinstance(place, Small)
        del self._tree[name]
        self.home.bury(place._tree)
        self.home.touch()

    def following(self, name: bytes, *, strictly: bool) -> Entry | None:
        """See Space."""
        found = self._names()
        at = bisect_right(found, name) if strictly else bisect_left(found, name)
        return self._entry(found[at]) if at < len(found) else None

    def preceding(self, name: bytes | None) -> Entry | None:
        """See Space."""
        found = self._names()
        at = len(found) if name is None else bisect_left(found, name)
        return self._entry(found[at - 1]) if at else None

    def walk(self, prefix: bytes) -> Iterator[Entry]:
        """See Space."""
        for name in self._names():
            if name.startswith(prefix):
                yield self._entry(name)

    def trees(self) -> Iterator[tuple[bytes, Tree]]:
        """See Space."""
        for name in self._names():
            found = self.find(name)
            if found is not None and not isinstance(found, bytes):
                yield name, found.tree()

    def tree(self) -> Tree:
        """See Space."""
        return plain(self._tree) if self.home.numbered else self._tree

    def sequence(self) -> int:
        """See Space."""
        number = self._tree.get(SEQUENCE)
        if number is None:
            return 0
        if not isinstance(number, bytes) or len(number) != ID.size:
            raise DataLoss(f"metadata store is damaged: {number!r} is no sequence number")
        return int(ID.unpack(number)[0])

    def set_sequence(self, number: int) -> None:
        """See Space."""
        if number:
            self._tree[SEQUENCE] = ID.pack(number)
        else:
            self._tree.pop(SEQUENCE, None)
        self.home.touch(numbered=True)

    def _names(self) -> list[bytes]:
        found = sorted(self._tree)
        return found[1:] if found and found[0] == SEQUENCE else found

    def _entry(self, name: bytes) -> Entry:
        entry = self._tree[name]
        return name, (entry if isinstance(entry, bytes) else None)

    def _spread(self) -> Space:
        """Turn this bucket, and those around it, into spaces."""
        while self.moved is None:
            self.home.spread()
        return self.moved


def _all(tree: MutableTree) -> Iterator[MutableTree]:
    """Yield a bucket and all that are in it."""
    left = [tree]
    while left:
        yield (one := left.pop())
        left += [entry for entry in one.values() if isinstance(entry, dict)]


def _damaged(record: bytes) -> DataLoss:
    return DataLoss(f"metadata store is damaged: {record[:16]!r} is no small bucket")
