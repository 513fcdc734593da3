"""The metadata store: nested buckets in transactions, in bbolt's terms, so that containerd's schema fits in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar, Union

R = TypeVar("R")

Entry: TypeAlias = tuple[bytes, bytes | None]
"""A key and its value; the value of a bucket's name is None."""

Tree: TypeAlias = Mapping[bytes, Union[bytes, "Tree"]]
"""All that a bucket holds, in no order: values, and the trees of the buckets in it; without sequence numbers."""

MAX_KEY: Final = 32768
"""Bytes in the key of a plain value; bbolt's limit."""

MAX_NAME: Final = 1 << 20
"""Bytes in a bucket's name; bbolt has no limit, and a wire message is at most 16 MiB."""

MAX_VALUE: Final = (1 << 31) - 2
"""Bytes in a value; bbolt's limit."""


class Cursor(Protocol):
    """A position among the entries of one bucket, which are ordered by the plain bytes of their names.

    The position is a name, not a place: entries may be added and removed between the calls, and `next` always gives the
    smallest name above the position, also when the entry there is gone. A call that finds nothing answers None and
    leaves the position. A new cursor has no position: its `next` is `first` and its `prev` is `last`.
    """

    def first(self) -> Entry | None:
        """Go to the entry with the smallest name."""

    def last(self) -> Entry | None:
        """Go to the entry with the greatest name."""

    def next(self) -> Entry | None:
        """Go to the entry after the position."""

    def prev(self) -> Entry | None:
        """Go to the entry before the position."""

    def seek(self, key: bytes) -> Entry | None:
        """Go to the entry with the smallest name that is `key` or above."""

    def delete(self) -> None:
        """Remove the value at the position, without effect if it is gone.

        Raises Unknown `incompatible value` at a bucket and FailedPrecondition without a position.
        """


class Bucket(Protocol):
    """A sorted map of names to values and to further buckets, seen inside one transaction.

    A name is taken by a value or by a bucket, never by both. Each bucket has a sequence number of 64 bits that starts
    at zero. The root is a bucket that holds only buckets.

    Errors, with bbolt's words where clients of containerd get to see them: Unknown `key required`, `bucket name
    required`, `key too large`, `value too large`, `incompatible value` (a value where a bucket is, or the reverse);
    AlreadyExists `bucket already exists`; NotFound `bucket not found` (also from any call on a bucket that was
    deleted); Internal `tx not writable` and `tx closed`; ResourceExhausted where there is no room: deletes still work
    then. DataLoss for stored bytes that make no sense. After an error the call has changed nothing, and one of
    ResourceExhausted, Unavailable or DataLoss in an update dooms it, even if the function goes on.
    """

    def get(self, key: bytes) -> bytes | None:
        """Give the value; None if there is none or a bucket has the name."""

    def put(self, key: bytes, value: bytes) -> None:
        """Store a value over the one that may be there. InvalidArgument in the root."""

    def delete(self, key: bytes) -> None:
        """Remove a value, without effect if there is none. Raises `incompatible value` at a bucket."""

    def bucket(self, name: bytes) -> Bucket | None:
        """Give the bucket of that name; None if there is none or a value has the name."""

    def create_bucket(self, name: bytes) -> Bucket:
        """Make an empty bucket."""

    def create_bucket_if_missing(self, name: bytes) -> Bucket:
        """Give the bucket of that name, made now if need be."""

    def delete_bucket(self, name: bytes) -> None:
        """Remove a bucket and all that is in it."""

    def cursor(self) -> Cursor:
        """Give a new cursor without position."""

    def items(self, prefix: bytes = b"") -> Iterator[Entry]:
        """Yield, in order, the entries whose names start with `prefix`; what it passes may change meanwhile."""

    def tree(self) -> Tree:
        """Give all that is in it, in one step. Not to be changed, and valid up to the next write."""

    def trees(self) -> Iterator[tuple[bytes, Tree]]:
        """Yield, in order, the name and the tree of each bucket in it; what it passes may change meanwhile."""

    def sequence(self) -> int:
        """Give the sequence number."""

    def next_sequence(self) -> int:
        """Add one to the sequence number and give the sum; past 2**64 - 1 follows 0."""

    def set_sequence(self, number: int) -> None:
        """Set the sequence number. InvalidArgument outside of 0..2**64 - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a database tells about itself; counters start at zero when it is opened."""

    used_bytes: int
    """Held by live data."""
    file_bytes: int
    """Of all files, free pages included."""
    limit_bytes: int
    """`used_bytes` that puts may not pass."""
    full: bool
    """Puts are refused for want of room; deletes work."""
    failed: str | None
    """Why the store has stopped until it is opened anew; None while it works."""
    updates: int
    """Committed calls of `update`."""
    commits: int
    """Durable commits; each holds one or more updates."""
    waiting: int
    """Updates that wait or run."""
    views: int
    """Read transactions that are open."""
    oldest_view_seconds: float
    """Age of the oldest of these; while it is open no page that it can see is reused."""


class Database(Protocol):
    """A file of nested buckets, with many readers and one writer.

    A transaction is atomic, isolated (readers see the last commit before they began and never wait) and durable: it
    is on the disk when `update` returns. Buckets and cursors die with their transaction.

    Errors: those of Bucket; Unavailable once the store is closed or stopped itself after an input or output error,
    with the reason in the text.
    Concurrency: all methods belong to the event loop that first called `update`, except `view`, `stats` and the
    buckets of a view, which work on any thread, one thread a view.
    Cancellation: a cancelled update did all of its work or none of it.
    """

    def view(self) -> AbstractContextManager[Bucket]:
        """Open a read transaction on the root. Keep it short: copy out what is needed, then close it."""

    async def update(self, change: Callable[[Bucket], R]) -> R:
        """Run `change` on the writer thread with the root of a write transaction, and give its result once durable.

        Updates run one after the other in the order of the calls and see each other's changes; several are made durable
        together. One that raises is rolled back alone and its caller gets the error. If the commit fails, none of these
        updates has happened and all callers get the error. `change` must not block or await, and it may run although
        its caller was cancelled. A bounded number of updates wait; callers beyond it wait for their turn to be
        queued.
        """

    @property
    def file(self) -> object:
        """Stands for what one commit makes durable; databases that share it can be changed by one update."""

    def root_in(self, bucket: Bucket) -> Bucket:
        """Give this database's root in the update under way in which a database with the same `file` gave `bucket`."""

    async def backup(self, path: Path) -> None:
        """Write a consistent copy to the new folder `path`, from which the same implementation can open a database.

        Raises AlreadyExists if something is there.
        """

    def stats(self) -> Stats:
        """Tell the present state; works after a failure too."""

    async def close(self) -> None:
        """Finish the updates that were accepted, then close. Safe to call twice."""
