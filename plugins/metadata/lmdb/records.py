"""One LMDB transaction as sorted records, with LMDB's errors turned into ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import lmdb

from moored.kernel.errors import DataLoss, Internal, MooredError, ResourceExhausted, Unavailable
from moored.plugins.metadata.lmdb.layout import BUCKET, FIRST_FREE, ID, ID_SIZE, MORE, NEXT_KEY

if TYPE_CHECKING:
    from moored.plugins.metadata.lmdb.small import Home

Record = tuple[bytes, bytes]

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_TEXT: Final = "no room is left in the metadata store, only deletes work"

FIRST_AHEAD: Final = 4
MAX_AHEAD: Final = 256
"""Records that a walk reads at a time, from few on: each step into LMDB is a chance for other threads to take over."""

MAX_LINKS: Final = 1024
"""Records that lead to spaces and are kept in mind from update to update."""


def translated(error: lmdb.Error) -> MooredError:
    """Give our error for LMDB's; Unavailable stands for what the environment cannot go on from."""
    text = str(error)
    if isinstance(error, lmdb.MapFullError | lmdb.DiskError) or getattr(error, "code", 0) in NO_ROOM:
        return ResourceExhausted(f"{FULL_TEXT}: {text}")
    if isinstance(error, lmdb.TxnFullError):
        return ResourceExhausted(f"update is too large for one transaction: {text}")
    if isinstance(error, lmdb.ReadersFullError):
        return ResourceExhausted(f"too many read transactions are open: {text}")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
        return DataLoss(f"metadata store is damaged: {text}")
    return Unavailable(f"metadata store failed: {text}")


class Records:
    """Get, put, delete and neighbours by LMDB key, until `end`.

    `full` makes `need_room` fail. After the first LMDB error the transaction is `doomed`: it must be aborted, because
    LMDB fails the parent along with a nested transaction that is committed after an error.
    """

    __slots__ = ("_made_cursor", "_txn", "changed", "dead", "doomed", "full", "homes", "links", "open", "writable")

    def __init__(
        self,
        txn: lmdb.Transaction[bytes],
        *,
        writable: bool,
        full: bool = False,
        links: dict[bytes, bytes] | None = None,
    ) -> None:
        self._txn = txn
        self._made_cursor: lmdb.Cursor[bytes] | None = None
        self.writable = writable
        self.full = full
        self.links = links
        """Records that lead to spaces, as far as known; for updates, which alone can keep them true."""
        self.open = True
        self.doomed: MooredError | None = None
        self.dead: set[bytes] = set()
        """Spaces deleted in this transaction, so that stale handles do not write into them."""
        self.homes: dict[bytes, Home] = {}
        """The small buckets that an update has met, by space and name; what they say goes before their records."""
        self.changed: list[Home] = []
        """Those that are to be written."""

    def end(self) -> None:
        """Refuse all further calls; the LMDB transaction itself is the caller's."""
        self.open = False
        if self._made_cursor is not None:
            self._made_cursor.close()

    def need_room(self) -> None:
        """Raise ResourceExhausted, which dooms the transaction, where nothing may be added."""
        if self.full:
            self.doomed = ResourceExhausted(FULL_TEXT)
            raise self.doomed

    def flush(self) -> None:
        """Write the small buckets that have changed: to be called before records are walked, and in the end."""
        while self.changed:
            self.changed.pop().store()

    def get(self, key: bytes) -> bytes | None:
        """Give the record at `key`."""
        try:
            return self._txn.get(key)
        except lmdb.Error as error:
            raise self._doom(error) from error

    def link(self, key: bytes) -> bytes | None:
        """Do as `get` for what most likely leads to a space, which is asked for over and over."""
        links = self.links
        if links is None:
            return self.get(key)
        found = links.get(key)
        if found is None:
            found = self.get(key)
            if found is not None and len(found) == 1 + ID_SIZE and found[0] == BUCKET:
                if len(links) >= MAX_LINKS:
                    links.clear()
                links[key] = found
        return found

    def put(self, key: bytes, record: bytes) -> None:
        """Store a record over the one that may be there."""
        if self.links:
            self.links.pop(key, None)
        try:
            self._txn.put(key, record)
        except lmdb.Error as error:
            raise self._doom(error) from error

    def delete(self, key: bytes) -> None:
        """Remove the record at `key`, if there is one."""
        if self.links:
            self.links.pop(key, None)
        try:
            self._txn.delete(key)
        except lmdb.Error as error:
            raise self._doom(error) from error

    def at_or_after(self, key: bytes) -> Record | None:
        """Give the first record at `key` or behind it."""
        try:
            return self._cursor.item() if self._cursor.set_range(key) else None
        except lmdb.Error as error:
            raise self._doom(error) from error

    def after(self, key: bytes) -> Record | None:
        """Give the first record behind `key`."""
        try:
            if not self._cursor.set_range(key):
                return None
            if self._cursor.key() == key and not self._cursor.next():
                return None
            return self._cursor.item()
        except lmdb.Error as error:
            raise self._doom(error) from error

    def before(self, key: bytes) -> Record | None:
        """Give the last record before `key`."""
        try:
            found = self._cursor.prev() if self._cursor.set_range(key) else self._cursor.last()
            return self._cursor.item() if found else None
        except lmdb.Error as error:
            raise self._doom(error) from error

    def walk(self, start: bytes) -> Iterator[Record]:
        """Yield all records whose key starts with `start`, in order, while nothing is written."""
        try:
            with self._txn.cursor() as cursor:
                if not cursor.set_range(start):
                    return
                ahead = cursor.iternext(keys=True, values=True)
                size = FIRST_AHEAD
                while batch := list(islice(ahead, size)):
                    size = min(2 * size, MAX_AHEAD)
                    for found in batch:
                        if not found[0].startswith(start):
                            return
                        yield found
                        if not self.open:
                            raise Internal("tx closed")
        except lmdb.Error as error:
            raise self._doom(error) from error

    def sweep(self, start: bytes) -> list[bytes]:
        """Delete all records whose key starts with `start`; give the spaces that these referred to."""
        spaces: list[bytes] = []
        if self.links:
            self.links.clear()
        try:
            found = self._cursor.set_range(start)
            while found and self._cursor.key().startswith(start):
                record = self._cursor.value()
                if len(record) == 1 + ID_SIZE and record[0] in (BUCKET, MORE):
                    spaces.append(record[1:])
                found = self._cursor.delete() and bool(self._cursor.key())
        except lmdb.Error as error:
            raise self._doom(error) from error
        return spaces

    @property
    def _cursor(self) -> lmdb.Cursor[bytes]:
        if self._made_cursor is None:
            self._made_cursor = self._txn.cursor()
        return self._made_cursor

    def new_space(self) -> bytes:
        """Take the next space id."""
        space = self.get(NEXT_KEY) or FIRST_FREE
        self.put(NEXT_KEY, ID.pack(ID.unpack(space)[0] + 1))
        return space

    def _doom(self, error: lmdb.Error) -> MooredError:
        if not self.open:
            return Internal("tx closed")
        self.doomed = translated(error)
        return self.doomed
