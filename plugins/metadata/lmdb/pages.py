"""Walks the pages of an LMDB file before LMDB maps it: LMDB trusts its pages, and follows a damaged one out of the map.

    page    0 number u64 | 8 unused u16 | 10 flags u16 | 12 end of the node offsets u16 | 14 start of the nodes u16
            16 node offsets, u16 each ... nodes, up to the end of the page
    run     pages of one large value: the first begins so, too, with 12 number of pages u32 | 16 value
    node    0 size of the data u32 (leaf), or number of a page u48 (branch) | 4 flags u16 (leaf) | 6 size of the key u16
            8 key, data; with the flag of big data the data is the number of a run, u64
    tree    0 page size u32 (in that of free pages) | 4 flags u16 | 6 levels u16
            8 branch pages, leaf pages, pages of runs, entries, root: u64 each

All is little endian. The entries of the tree of free pages are lists: their length, then page numbers, u64 each. What
is found are pages that are none, cycles, pages in two places, keys out of order, and whatever leads out of its page or
of the file. There are no checksums: a changed byte inside of a value is found where that is read, if at all.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from moored.kernel.errors import DataLoss

HEADER: Final = 16
NODE: Final = 8
PAGE: Final = struct.Struct("<QHHHH")
RUN: Final = struct.Struct("<QHHI")
NUMBER: Final = struct.Struct("<Q")
TREE: Final = struct.Struct("<IHHQQQQQ")
NO_PAGE: Final = (1 << 64) - 1

BRANCH: Final = 0x01
LEAF: Final = 0x02
OVERFLOW: Final = 0x04
BIG_DATA: Final = 0x01
INTEGER_KEYS: Final = 0x08
"""The one flag of the tree of free pages; that of records has none."""
CHILD: Final = (1 << 48) - 1
"""Of a branch's node, read as one number: the page; the size of the key is above it."""
KEY_SIZE_AT: Final = 48
MAX_DEPTH: Final = 32
MAX_KEY: Final = 511
FIRST: Final = 2
"""The first page behind the two meta pages."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What a meta page says."""

    page_size: int
    free_tree: bytes
    main_tree: bytes
    last_page: int
    transaction: int


@dataclass(slots=True)
class _Count:
    """What was met in a tree."""

    branches: int = 0
    leaves: int = 0
    overflows: int = 0
    entries: int = 0


def check_pages(fd: int, name: str, meta: Meta) -> None:
    """Walk both trees of a file. Raises DataLoss, which names the file as `name`, and OSError."""
    walk = _Walk(fd, name, meta)
    walk.tree(meta.main_tree, free=False)
    walk.tree(meta.free_tree, free=True)


class _Walk:
    """One walk through a file, level by level, so that keys are met in their order."""

    def __init__(self, fd: int, name: str, meta: Meta) -> None:
        self._fd = fd
        self._name = name
        self._size = meta.page_size
        self._last = meta.last_page
        self._used = bytearray(meta.last_page + 1)
        self._count = _Count()
        self._key = b""
        """The last key that was met in a leaf."""

    def tree(self, stored: bytes, *, free: bool) -> None:
        """Walk one tree from its root."""
        what = "free pages" if free else "records"
        _, flags, depth, branches, leaves, overflows, entries, root = TREE.unpack(stored)
        if flags != (INTEGER_KEYS if free else 0):
            raise self._damaged(f"the tree of {what} has flags {flags:#x}")
        if root != NO_PAGE and not 1 <= depth <= MAX_DEPTH:
            raise self._damaged(f"the tree of {what} has {depth} levels, wanted 1 to {MAX_DEPTH}")
        self._count = _Count()
        self._key = b""
        level = [] if root == NO_PAGE else [(root, b"")]
        for height in range(depth if level else 0, 0, -1):
            if height > 1:
                level = [child for number, low in level for child in self._branch(number, low, free=free)]
                continue
            for number, low in level:
                self._leaf(number, low, free=free)
        wanted = _Count(branches, leaves, overflows, entries)
        if self._count != wanted:
            raise self._damaged(f"the tree of {what} has {self._count}, wanted {wanted}")

    def _branch(self, number: int, low: bytes, *, free: bool) -> Iterator[tuple[int, bytes]]:
        """Yield the pages that a page leads to, each with the key that those in it must not be below."""
        page, offsets = self._page(number, BRANCH)
        # LMDB ends the process over one that leads to a single page, but among free pages, where it makes them.
        if len(offsets) < (1 if free else 2):
            raise self._damaged(f"page {number} leads to {len(offsets)} pages")
        self._count.branches += 1
        for at, offset in enumerate(offsets):
            head = NUMBER.unpack_from(page, offset)[0]
            child, key_size = head & CHILD, head >> KEY_SIZE_AT
            if key_size > MAX_KEY or offset + NODE + key_size > self._size:
                raise self._damaged(f"page {number} has a key that leads out of it")
            # The first key of a branch stands for all that is below the second.
            if at and not free:
                key = page[offset + NODE : offset + NODE + key_size]
                if key <= low:
                    raise self._damaged(f"page {number} has keys out of order")
                low = key
            yield child, low

    def _leaf(self, number: int, low: bytes, *, free: bool) -> None:
        page, offsets = self._page(number, LEAF)
        halves = memoryview(page).cast("H")
        size, previous = self._size, self._key
        if low and previous >= low:
            raise self._damaged(f"page {number} is behind keys that belong into it")
        self._count.leaves += 1
        self._count.entries += len(offsets)
        for offset in offsets:
            at = offset >> 1
            flags, start = halves[at + 2], offset + NODE + halves[at + 3]
            length = halves[at] | halves[at + 1] << 16
            if flags & ~BIG_DATA or not offset + NODE < start <= offset + NODE + MAX_KEY:
                raise self._damaged(f"page {number} has an entry of unknown kind")
            if start + (NUMBER.size if flags else length) > size:
                raise self._damaged(f"page {number} has an entry that leads out of it")
            run = NUMBER.unpack_from(page, start)[0] if flags else 0
            if flags:
                self._run(run, length)
            if free:
                self._free(self._value(run, length) if flags else page[start : start + length])
                continue
            key = page[offset + NODE : start]
            if key <= previous or key < low:
                raise self._damaged(f"page {number} has keys out of order")
            previous = key
        self._key = previous

    def _free(self, numbers: bytes) -> None:
        """Check a list of free pages."""
        if len(numbers) < NUMBER.size or len(numbers) % NUMBER.size:
            raise self._damaged(f"a list of free pages has {len(numbers)} bytes")
        length, *pages = memoryview(numbers).cast("Q")
        if length > len(pages):
            raise self._damaged(f"a list of {len(pages)} free pages says that it has {length}")
        for number in pages[:length]:
            self._take(number)

    def _run(self, number: int, length: int) -> None:
        """Check the pages of a large value."""
        self._take(number)
        head = os.pread(self._fd, RUN.size, number * self._size)
        found, _, flags, pages = RUN.unpack(head) if len(head) == RUN.size else (0, 0, 0, 0)
        # A value that has shrunk keeps its pages.
        if found != number or flags != OVERFLOW or pages <= (HEADER - 1 + length) // self._size:
            raise self._damaged(f"page {number} does not begin a value of {length} bytes")
        for more in range(number + 1, number + pages):
            self._take(more)
        self._count.overflows += pages

    def _value(self, number: int, length: int) -> bytes:
        return os.pread(self._fd, length, number * self._size + HEADER)

    def _page(self, number: int, kind: int) -> tuple[bytes, array[int]]:
        """Read a page, and where its nodes are."""
        self._take(number)
        page = os.pread(self._fd, self._size, number * self._size)
        if len(page) < self._size:
            raise self._damaged(f"page {number} cannot be read whole")
        found, _, flags, lower, upper = PAGE.unpack_from(page)
        if found != number or flags != kind:
            raise self._damaged(f"page {number} is no {'leaf' if kind == LEAF else 'branch'}")
        if not HEADER < lower <= upper <= self._size or lower & 1:
            raise self._damaged(f"page {number} has its nodes from {lower} to {upper}")
        offsets = array("H", page[HEADER:lower])
        if min(offsets) < upper or max(offsets) > self._size - NODE or any(offset & 1 for offset in offsets):
            raise self._damaged(f"page {number} has nodes out of their place")
        return page, offsets

    def _take(self, number: int) -> None:
        if not FIRST <= number <= self._last:
            raise self._damaged(f"page {number} is none of pages {FIRST} to {self._last}")
        if self._used[number]:
            raise self._damaged(f"page {number} is used twice")
        self._used[number] = 1

    def _damaged(self, text: str) -> DataLoss:
        return DataLoss(f"metadata file {self._name!r} is damaged: {text}")
