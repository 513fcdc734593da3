"""Reads bbolt files without mapping them; no file, however hostile, makes it crash, hang or take much memory.

Each page is used at most once and no two elements of a page share bytes, so that what comes out is never more than
the file. Memory: two bits a page, two windows of WINDOW bytes and two keys for each page on the path to the present
element, and one value; all of these have limits.

Errors: InvalidArgument if the bytes are no bbolt file of version 2; DataLoss with the offset in the file if they were
one; ResourceExhausted beyond the limits stated here.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeAlias

from moored.kernel.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME
from moored.plugins.metadata.bbolt.pages import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET,
    BUCKET_FLAG,
    ELEMENT_SIZE,
    FREE_LIST,
    LARGE_COUNT,
    LEAF,
    LEAF_ELEMENT,
    MAGIC,
    META_BODY,
    META_SIZE,
    NO_FREE_LIST,
    PAGE,
    PAGE_ID,
    PAGE_SIZES,
    VERSION,
    checksum,
)
from moored.plugins.metadata.bbolt.tree import LEAVE, MAX_DEPTH, Enter, Event, Leave, Value

WINDOW: Final = 64 << 10
MAX_READ: Final = 256 << 20
"""Bytes of one key or value; a wire message, where they all come from, has at most 16 MiB."""
MAX_PATH: Final = 512
"""Pages and open buckets on the path from the root."""
MAX_PAGES: Final = 1 << 28
"""Of a file: 1 TiB in pages of 4096 bytes."""


class Meta(NamedTuple):
    """The root of one committed state."""

    page_size: int
    root: int
    root_sequence: int
    free_list: int
    high_water: int
    transaction: int


class _Bucket(NamedTuple):
    name: bytes
    at: int
    size: int


class _Child(NamedTuple):
    page: int
    lower: bytes
    upper: bytes | None


class _Range(NamedTuple):
    """A page's bytes in the file, and the keys that it may hold: lower <= key < upper."""

    at: int
    size: int
    lower: bytes | None
    upper: bytes | None


_Item: TypeAlias = _Bucket | _Child | Event


class BoltFile:
    """A bbolt file, locked against writers while it is open. A context manager; one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open and check the metas and the free list.

        Raises NotFound, FailedPrecondition if a process has it open for writing, and see the module.
        """
        self.path = path
        self.leaked = 0
        """Pages that are neither used nor listed as free, known after `events` ended; harmless."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFound(f"no file {str(path)!r}") from None
        except OSError as error:
            raise Unavailable(f"file {str(path)!r} cannot be opened: {error.strerror}") from error
        try:
            self._lock()
            self._file = _File(self._fd)
            self.meta = _choose_meta(self._file)
            self._free = self._read_free_list()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Safe to call once only."""
        os.close(self._fd)

    def events(self) -> Iterator[Event]:
        """Yield the whole tree, checked as far as it was yielded. Each call walks anew."""
        return _Walk(self._file, self.meta, self._free, self).events()

    def check(self) -> int:
        """Walk the whole tree; give the number of leaked pages."""
        for _ in self.events():
            pass
        return self.leaked

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise InvalidArgument(f"{str(self.path)!r} is no regular file, wanted a bbolt file")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"file {str(self.path)!r} is in use by a daemon, wanted a stopped one") from None

    def _read_free_list(self) -> bytearray:
        """Give one bit a page: listed as free."""
        meta = self.meta
        free = bytearray(meta.high_water // 8 + 1)
        if meta.free_list == NO_FREE_LIST:
            return free
        at = meta.free_list * meta.page_size
        flags, count, size = _page_header(self._file, meta, meta.free_list)
        if flags != FREE_LIST:
            raise DataLoss(f"page flags {flags:#x} at offset {at}, wanted a free list ({FREE_LIST:#x})")
        start = at + PAGE.size
        if count == LARGE_COUNT:
            count = PAGE_ID.unpack(self._file.read(start, PAGE_ID.size))[0]
            start += PAGE_ID.size
        if count > (at + size - start) // PAGE_ID.size:
            raise DataLoss(f"free list of {count} pages at offset {at} does not fit in {size} bytes")
        window = _Window(self._file, at + size)
        before = 1
        for offset in range(start, start + count * PAGE_ID.size, PAGE_ID.size):
            (page,) = PAGE_ID.unpack(window.read(offset, PAGE_ID.size))
            if not before < page < meta.high_water:
                raise DataLoss(
                    f"free page {page} after {before} at offset {offset}, wanted less than {meta.high_water}"
                )
            before = page
            free[page >> 3] |= 1 << (page & 7)
        return free


class _File:
    """Bounded reads at offsets."""

    __slots__ = ("_fd", "size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, at: int, size: int) -> bytes:
        if size > MAX_READ:
            raise ResourceExhausted(f"{size} bytes in one piece at offset {at}, the limit is {MAX_READ}")
        try:
            data = os.pread(self._fd, size, at)
        except OSError as error:
            raise DataLoss(f"{size} bytes at offset {at} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise DataLoss(f"file ends at offset {at + len(data)}, wanted {size} bytes at offset {at}")
        return data


class _Window:
    """Small reads that mostly go forwards, served from one larger one."""

    __slots__ = ("_at", "_data", "_end", "_file")

    def __init__(self, file: _File, end: int) -> None:
        self._file = file
        self._end = end
        self._at = 0
        self._data = b""

    def read(self, at: int, size: int) -> bytes:
        start = at - self._at
        if start < 0 or start + size > len(self._data):
            if size >= WINDOW:
                return self._file.read(at, size)
            self._at, start = at, 0
            self._data = self._file.read(at, max(size, min(WINDOW, self._end - at)))
        return self._data[start : start + size]


class _Walk:
    """One pass over the tree."""

    def __init__(self, file: _File, meta: Meta, free: bytearray, owner: BoltFile) -> None:
        self._file = file
        self._meta = meta
        self._free = free
        self._owner = owner
        self._used = bytearray(len(free))
        self._pages = 2
        self._used[0] = 0b11
        if meta.free_list != NO_FREE_LIST:
            _, _, size = _page_header(file, meta, meta.free_list)
            self._claim(meta.free_list, size // meta.page_size)

    def events(self) -> Iterator[Event]:
        meta = self._meta
        yield Enter(b"", meta.root_sequence)
        # Each element is one page on the path, or the end of a bucket.
        path: list[Iterator[_Item]] = [iter((LEAVE,)), self._page(meta.root, None, None)]
        depth = 0
        while path:
            item = next(path[-1], None)
            if item is None:
                path.pop()
            elif isinstance(item, _Bucket):
                depth += 1
                if depth > MAX_DEPTH:
                    raise InvalidArgument(f"bucket at offset {item.at} is nested deeper than {MAX_DEPTH} levels")
                sequence, below = self._bucket(item)
                path += [iter((LEAVE,)), below]
                yield Enter(item.name, sequence)
            elif isinstance(item, _Child):
                if len(path) > MAX_PATH:
                    raise DataLoss(f"page {item.page} lies deeper than {MAX_PATH} pages")
                path.append(self._page(item.page, item.lower, item.upper))
            else:
                depth -= isinstance(item, Leave)
                yield item
        if meta.free_list != NO_FREE_LIST:
            listed = sum(byte.bit_count() for byte in self._free)
            self._owner.leaked = meta.high_water - self._pages - listed

    def _bucket(self, element: _Bucket) -> tuple[int, Iterator[_Item]]:
        """Give the sequence and the root page of a bucket's value."""
        if element.size < BUCKET.size:
            raise DataLoss(f"bucket of {element.size} bytes at offset {element.at}, wanted {BUCKET.size} or more")
        root, sequence = BUCKET.unpack(self._file.read(element.at, BUCKET.size))
        if root:
            if element.size != BUCKET.size:
                raise DataLoss(f"bucket of {element.size} bytes at offset {element.at}, wanted {BUCKET.size}")
            return sequence, self._page(root, None, None)
        return sequence, self._inline(element.at + BUCKET.size, element.size - BUCKET.size)

    def _inline(self, at: int, size: int) -> Iterator[_Item]:
        if size < PAGE.size:
            raise DataLoss(f"inline page of {size} bytes at offset {at}, wanted {PAGE.size} or more")
        page, flags, count, overflow = PAGE.unpack(self._file.read(at, PAGE.size))
        if (page, flags, overflow) != (0, LEAF, 0):
            raise DataLoss(f"inline page {page} with flags {flags:#x} and overflow {overflow} at offset {at}")
        return self._leaf(_Range(at, size, None, None), count)

    def _page(self, page: int, lower: bytes | None, upper: bytes | None) -> Iterator[_Item]:
        flags, count, size = _page_header(self._file, self._meta, page)
        self._claim(page, size // self._meta.page_size)
        place = _Range(page * self._meta.page_size, size, lower, upper)
        if flags == LEAF:
            return self._leaf(place, count)
        if flags == BRANCH:
            return self._branch(place, count)
        raise DataLoss(f"page flags {flags:#x} at offset {place.at}, wanted a branch ({BRANCH:#x}) or leaf ({LEAF:#x})")

    def _claim(self, page: int, count: int) -> None:
        """Take pages for the one place that may refer to them."""
        for number in range(page, page + count):
            bit = 1 << (number & 7)
            if self._used[number >> 3] & bit:
                raise DataLoss(f"page {number} at offset {number * self._meta.page_size} is used twice")
            if self._free[number >> 3] & bit:
                raise DataLoss(f"page {number} at offset {number * self._meta.page_size} is used and listed as free")
            self._used[number >> 3] |= bit
        self._pages += count

    def _leaf(self, place: _Range, count: int) -> Iterator[_Item]:
        elements, data, free_from = self._windows(place, count)
        before: bytes | None = None
        for index in range(count):
            at = place.at + PAGE.size + index * ELEMENT_SIZE
            flags, pos, key_size, value_size = LEAF_ELEMENT.unpack(elements.read(at, ELEMENT_SIZE))
            if flags > BUCKET_FLAG:
                raise DataLoss(f"leaf element flags {flags:#x} at offset {at}, wanted 0 or {BUCKET_FLAG}")
            free_from = _checked_place(place, at, pos, key_size + value_size, free_from)
            key = _read_key(data, at + pos, key_size, MAX_NAME if flags else MAX_KEY)
            _check_order(place, at, key, before)
            before = key
            if flags:
                yield _Bucket(key, at + pos + key_size, value_size)
            else:
                yield Value(key, data.read(at + pos + key_size, value_size))

    def _branch(self, place: _Range, count: int) -> Iterator[_Item]:
        if not count:
            raise DataLoss(f"branch page without children at offset {place.at}")
        elements, data, free_from = self._windows(place, count)
        before: bytes | None = None
        waiting: int | None = None
        for index in range(count):
            at = place.at + PAGE.size + index * ELEMENT_SIZE
            pos, key_size, child = BRANCH_ELEMENT.unpack(elements.read(at, ELEMENT_SIZE))
            free_from = _checked_place(place, at, pos, key_size, free_from)
            key = _read_key(data, at + pos, key_size, MAX_NAME)
            _check_order(place, at, key, before)
            if waiting is not None and before is not None:
                yield _Child(waiting, before, key)
            before, waiting = key, child
        if waiting is not None and before is not None:
            yield _Child(waiting, before, place.upper)

    def _windows(self, place: _Range, count: int) -> tuple[_Window, _Window, int]:
        """Give readers for elements and data, and where data may begin."""
        end = PAGE.size + count * ELEMENT_SIZE
        if end > place.size:
            raise DataLoss(f"{count} elements at offset {place.at} do not fit in {place.size} bytes")
        window = _Window(self._file, place.at + place.size)
        data = window if place.size <= WINDOW else _Window(self._file, place.at + place.size)
        return window, data, place.at + end


def _checked_place(place: _Range, at: int, pos: int, size: int, free_from: int) -> int:
    """Give the end of an element's data; data lies in element order, inside of the page and without overlap."""
    end = at + pos + size
    if at + pos < free_from or end > place.at + place.size:
        raise DataLoss(
            f"element at offset {at} has {size} bytes at {at + pos}, wanted {free_from} to {place.at + place.size}"
        )
    return end


def _read_key(data: _Window, at: int, size: int, limit: int) -> bytes:
    if not 1 <= size <= limit:
        raise DataLoss(f"key of {size} bytes at offset {at}, wanted 1 to {limit}")
    return data.read(at, size)


def _check_order(place: _Range, at: int, key: bytes, before: bytes | None) -> None:
    if before is not None and key <= before:
        raise DataLoss(f"key {key[:64]!r} at offset {at} stands behind {before[:64]!r}, wanted ascending order")
    if (place.lower is not None and key < place.lower) or (place.upper is not None and key >= place.upper):
        raise DataLoss(f"key {key[:64]!r} at offset {at} lies outside of what its branch page says")


def _page_header(file: _File, meta: Meta, page: int) -> tuple[int, int, int]:
    """Give flags, count and size in bytes with overflow; the page lies in the file."""
    at = page * meta.page_size
    if not 2 <= page < meta.high_water:
        raise DataLoss(f"reference to page {page} (offset {at}), wanted 2 to {meta.high_water - 1}")
    number, flags, count, overflow = PAGE.unpack(file.read(at, PAGE.size))
    if number != page:
        raise DataLoss(f"page id {number} at offset {at}, wanted {page}")
    if page + overflow >= meta.high_water:
        raise DataLoss(f"page {page} at offset {at} has {overflow} further pages, wanted fewer than {meta.high_water}")
    return flags, count, (1 + overflow) * meta.page_size


def _choose_meta(file: _File) -> Meta:
    """Give the valid meta with the higher transaction, as bbolt does."""
    if file.size < 2 * PAGE_SIZES[0]:
        raise InvalidArgument(f"invalid database: {file.size} bytes, wanted two pages or more")
    first = _read_meta(file, 0)
    metas = [first] if isinstance(first, Meta) else []
    for size in (first.page_size,) if isinstance(first, Meta) else PAGE_SIZES:
        second = _read_meta(file, size)
        if isinstance(second, Meta) and second.page_size == size:
            metas.append(second)
            break
    if not metas and isinstance(first, Exception):
        raise first
    meta = max(metas, key=lambda one: one.transaction)
    _check_meta(file, meta)
    return meta


def _read_meta(file: _File, at: int) -> Meta | InvalidArgument | DataLoss:
    if at + PAGE.size + META_SIZE > file.size:
        return InvalidArgument(f"invalid database: no meta at offset {at}")
    data = file.read(at + PAGE.size, META_SIZE)
    body = data[: META_BODY.size]
    magic, version, page_size, _, root, sequence, free_list, high_water, transaction = META_BODY.unpack(body)
    if magic != MAGIC:
        return InvalidArgument(f"invalid database: {magic:#x} at offset {at + PAGE.size}, wanted {MAGIC:#x}")
    if version != VERSION:
        return InvalidArgument(f"version mismatch: {version} at offset {at + PAGE.size + 4}, wanted {VERSION}")
    if PAGE_ID.unpack(data[META_BODY.size :])[0] != checksum(body):
        return DataLoss(f"checksum error: meta at offset {at + PAGE.size}")
    if page_size not in PAGE_SIZES:
        return InvalidArgument(
            f"page size {page_size} at offset {at + PAGE.size + 8}, wanted a power of two from 1024 on"
        )
    return Meta(page_size, root, sequence, free_list, high_water, transaction)


def _check_meta(file: _File, meta: Meta) -> None:
    if not 2 <= meta.root < meta.high_water:
        raise DataLoss(f"root page {meta.root}, wanted 2 to {meta.high_water - 1}")
    if meta.high_water > MAX_PAGES:
        raise ResourceExhausted(f"file of {meta.high_water} pages, the limit is {MAX_PAGES}")
    if meta.high_water * meta.page_size > file.size:
        wanted = meta.high_water * meta.page_size
        raise DataLoss(f"file ends at offset {file.size}, wanted {wanted} bytes ({meta.high_water} pages)")
