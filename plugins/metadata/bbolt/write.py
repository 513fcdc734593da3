"""Writes a bbolt file from a tree of buckets in one pass, from the leaves up, in bounded memory.

Memory: for each open bucket one leaf and one branch page a level (more bytes only for an element that is larger
itself).
The file appears whole or not at all: a temporary beside it, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME, MAX_VALUE
from moored.plugins.metadata.bbolt.pages import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET,
    BUCKET_FLAG,
    DEFAULT_PAGE_SIZE,
    ELEMENT_SIZE,
    FREE_LIST,
    LEAF,
    LEAF_ELEMENT,
    MAGIC,
    MAX_COUNT,
    META,
    META_BODY,
    NO_FREE_LIST,
    PAGE,
    PAGE_ID,
    PAGE_SIZES,
    VERSION,
    checksum,
)
from moored.plugins.metadata.bbolt.tree import MAX_DEPTH, Enter, Event, Value

BUFFER: Final = 1 << 20
INLINE_SHARE: Final = 4
"""A bucket without buckets lies in its parent if its page takes at most this part of a page."""
TRANSACTION: Final = 1
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_file(
    path: Path,
    tree: Iterable[Event],
    *,
    page_size: int = DEFAULT_PAGE_SIZE,
    stored_free_list: bool = False,
    mode: int = 0o600,
) -> None:
    """Write `tree` to `path`, over the file that may be there. Blocks.

    Without a stored free list, as in containerd's meta.db, bbolt checks the whole tree when it opens the file.
    Raises FailedPrecondition if a process has the old file open, InvalidArgument for a tree out of order or beyond
    bbolt's limits, ResourceExhausted if the disk is full, Unavailable if it fails; then `path` is what it was.
    """
    if page_size not in PAGE_SIZES:
        raise InvalidArgument(f"page size {page_size}, wanted a power of two from {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}")
    _refuse_open_file(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(fd, "wb", buffering=BUFFER) as file:
            _Writer(file, page_size, stored_free_list=stored_free_list).write(tree)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        kind = ResourceExhausted if error.errno in NO_ROOM else Unavailable
        raise kind(f"file {str(path)!r} cannot be written: {error.strerror}") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_open_file(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(f"file {str(path)!r} is in use by a daemon, wanted a stopped one") from None
    finally:
        os.close(fd)


class _Leaf:
    """Elements that become one leaf page."""

    __slots__ = ("elements", "size")

    def __init__(self) -> None:
        self.elements: list[tuple[int, bytes, bytes]] = []
        self.size = PAGE.size

    def add(self, flags: int, key: bytes, value: bytes) -> None:
        self.elements.append((flags, key, value))
        self.size += ELEMENT_SIZE + len(key) + len(value)

    def image(self, page: int, overflow: int) -> list[bytes]:
        """Give the page in parts, without padding."""
        count = len(self.elements)
        head = bytearray(PAGE.pack(page, LEAF, count, overflow))
        pos = count * ELEMENT_SIZE
        data: list[bytes] = []
        for flags, key, value in self.elements:
            head += LEAF_ELEMENT.pack(flags, pos, len(key), len(value))
            pos += len(key) + len(value) - ELEMENT_SIZE
            data += (key, value)
        return [bytes(head), *data]


class _Branch:
    """Children that become one branch page."""

    __slots__ = ("children", "size")

    def __init__(self) -> None:
        self.children: list[tuple[bytes, int]] = []
        self.size = PAGE.size

    def add(self, key: bytes, child: int) -> None:
        self.children.append((key, child))
        self.size += ELEMENT_SIZE + len(key)

    def split_last(self) -> _Branch:
        """Move the last child to a new page."""
        key, child = self.children.pop()
        self.size -= ELEMENT_SIZE + len(key)
        new = _Branch()
        new.add(key, child)
        return new

    def image(self, page: int, overflow: int) -> list[bytes]:
        """Give the page in parts, without padding."""
        head = bytearray(PAGE.pack(page, BRANCH, len(self.children), overflow))
        pos = len(self.children) * ELEMENT_SIZE
        for key, child in self.children:
            head += BRANCH_ELEMENT.pack(pos, len(key), child)
            pos += len(key) - ELEMENT_SIZE
        return [bytes(head), *(key for key, _ in self.children)]


class _Bucket:
    """One open bucket: its last leaf and the last branch page of each level above."""

    __slots__ = ("before", "branches", "has_buckets", "leaf", "name", "sequence")

    def __init__(self, name: bytes, sequence: int) -> None:
        if not 0 <= sequence < 1 << 64:
            raise InvalidArgument(f"sequence {sequence} does not fit in 64 bits without sign")
        self.name = name
        self.sequence = sequence
        self.leaf = _Leaf()
        self.branches: list[_Branch] = []
        self.has_buckets = False
        self.before = b""

    def check_next(self, key: bytes, limit: int) -> None:
        if not 1 <= len(key) <= limit:
            raise InvalidArgument(f"key of {len(key)} bytes, wanted 1 to {limit}")
        if key <= self.before:
            raise InvalidArgument(f"key {key[:64]!r} stands behind {self.before[:64]!r}, wanted ascending order")
        self.before = key


class _Writer:
    """Writes pages in the order in which they are complete; the metas come last."""

    def __init__(self, file: BinaryIO, page_size: int, *, stored_free_list: bool) -> None:
        self._file = file
        self._page_size = page_size
        self._stored_free_list = stored_free_list
        self._next_page = 2
        self._open: list[_Bucket] = []

    def write(self, tree: Iterable[Event]) -> None:
        self._file.seek(2 * self._page_size)
        root: tuple[int, int] | None = None
        for event in tree:
            if root is not None or not (self._open or isinstance(event, Enter)):
                raise InvalidArgument(f"{type(event).__name__} outside of the root bucket")
            if isinstance(event, Value):
                self._value(event)
            elif isinstance(event, Enter):
                self._enter(event)
            else:
                root = self._leave()
        if root is None:
            raise InvalidArgument("the tree ends inside of a bucket")
        free_list = NO_FREE_LIST
        if self._stored_free_list:
            free_list = self._put_page([PAGE.pack(self._next_page, FREE_LIST, 0, 0)], PAGE.size)
        for page in (0, 1):
            self._meta(page, *root, free_list)

    def _value(self, event: Value) -> None:
        bucket = self._open[-1]
        if len(self._open) == 1:
            raise InvalidArgument(f"value {event.key[:64]!r} in the root, which holds only buckets")
        bucket.check_next(event.key, MAX_KEY)
        if len(event.value) > MAX_VALUE:
            raise InvalidArgument(f"value of {len(event.value)} bytes, wanted at most {MAX_VALUE}")
        self._add(bucket, 0, event.key, event.value)

    def _enter(self, event: Enter) -> None:
        if self._open:
            self._open[-1].check_next(event.name, MAX_NAME)
            self._open[-1].has_buckets = True
        if len(self._open) > MAX_DEPTH:
            raise InvalidArgument(f"bucket {event.name[:64]!r} is nested deeper than {MAX_DEPTH} levels")
        self._open.append(_Bucket(event.name, event.sequence))

    def _leave(self) -> tuple[int, int] | None:
        """Close a bucket into its parent; of the root give page and sequence."""
        bucket = self._open.pop()
        leaf = bucket.leaf
        if not self._open:
            return self._root_page(bucket), bucket.sequence
        inline = not bucket.has_buckets and not bucket.branches and leaf.size <= self._page_size // INLINE_SHARE
        if inline:
            value = b"".join((BUCKET.pack(0, bucket.sequence), *leaf.image(0, 0)))
        else:
            value = BUCKET.pack(self._root_page(bucket), bucket.sequence)
        self._add(self._open[-1], BUCKET_FLAG, bucket.name, value)
        return None

    def _add(self, bucket: _Bucket, flags: int, key: bytes, value: bytes) -> None:
        leaf = bucket.leaf
        size = leaf.size + ELEMENT_SIZE + len(key) + len(value)
        if leaf.elements and (size > self._page_size or len(leaf.elements) == MAX_COUNT):
            self._flush_leaf(bucket)
        bucket.leaf.add(flags, key, value)

    def _flush_leaf(self, bucket: _Bucket) -> None:
        leaf, bucket.leaf = bucket.leaf, _Leaf()
        self._add_child(bucket, 0, leaf.elements[0][1], self._put(leaf))

    def _add_child(self, bucket: _Bucket, level: int, key: bytes, page: int) -> None:
        if level == len(bucket.branches):
            bucket.branches.append(_Branch())
        branch = bucket.branches[level]
        size = branch.size + ELEMENT_SIZE + len(key)
        # One child stays for the next page, since a branch page has two at least: here, there, and at the very end.
        if len(branch.children) > 2 and (size > self._page_size or len(branch.children) == MAX_COUNT):
            last = branch.split_last()
            self._add_child(bucket, level + 1, branch.children[0][0], self._put(branch))
            bucket.branches[level] = branch = last
        branch.add(key, page)

    def _root_page(self, bucket: _Bucket) -> int:
        """Write what is left of a bucket and give the page at its top."""
        if not bucket.branches:
            return self._put(bucket.leaf)
        self._flush_leaf(bucket)
        level = 0
        while level < len(bucket.branches) - 1:
            branch = bucket.branches[level]
            self._add_child(bucket, level + 1, branch.children[0][0], self._put(branch))
            level += 1
        return self._put(bucket.branches[level])

    def _put(self, node: _Leaf | _Branch) -> int:
        overflow = -(-node.size // self._page_size) - 1
        return self._put_page(node.image(self._next_page, overflow), node.size)

    def _put_page(self, parts: list[bytes], size: int) -> int:
        page = self._next_page
        count = -(-size // self._page_size)
        self._file.writelines(parts)
        self._file.write(bytes(count * self._page_size - size))
        self._next_page += count
        return page

    def _meta(self, page: int, root: int, sequence: int, free_list: int) -> None:
        """Write the meta of transaction TRANSACTION, or of the one before, which looks the same."""
        transaction = TRANSACTION if page == TRANSACTION % 2 else TRANSACTION - 1
        body = META_BODY.pack(
            MAGIC, VERSION, self._page_size, 0, root, sequence, free_list, self._next_page, transaction
        )
        self._file.seek(page * self._page_size)
        self._file.write(PAGE.pack(page, META, 0, 0) + body + PAGE_ID.pack(checksum(body)))
        self._file.write(bytes(self._page_size - PAGE.size - len(body) - PAGE_ID.size))
