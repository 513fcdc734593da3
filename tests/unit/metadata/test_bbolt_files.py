"""bbolt's file format to the byte, each rule of the reader, and what the writer promises."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.conformance.metadata import contents
from moored.kernel.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    ResourceExhausted,
)
from moored.plugins.metadata.bbolt.copy import export_file, import_file
from moored.plugins.metadata.bbolt.pages import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET,
    FREE_LIST,
    LEAF,
    LEAF_ELEMENT,
    META_BODY,
    NO_FREE_LIST,
    PAGE,
    PAGE_ID,
    checksum,
)
from moored.plugins.metadata.bbolt.read import BoltFile
from moored.plugins.metadata.bbolt.tree import LEAVE, MAX_DEPTH, Enter, Event, Value
from moored.plugins.metadata.bbolt.write import write_file
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from unit.metadata.memory import MemoryDatabase

SIZE = 4096
MAGIC = 0xED0CDAED
# A new file as bbolt itself writes it: meta 0, and the root leaf of a new meta.db from its flags on.
NEW_META = bytes.fromhex(
    "edda0ced02000000001000000000000003000000000000000000000000000000"
    "020000000000000004000000000000000000000000000000eefd8946116e5107"
)
VERSION_LEAF = (
    bytes.fromhex("0200010000000000" + "01000000100000000200000038000000" + "7631")
    + bytes(24)
    + bytes.fromhex("0200010000000000" + "00000000100000000700000001000000")
    + b"version\x08"
)
VERSION_TREE = [Enter(b"", 0), Enter(b"v1", 0), Value(b"version", b"\x08"), LEAVE, LEAVE]


def meta(page: int, root: int, high_water: int, *, txid: int = 1, free: int = NO_FREE_LIST, size: int = SIZE) -> bytes:
    body = META_BODY.pack(MAGIC, 2, size, 0, root, 0, free, high_water, txid)
    return (PAGE.pack(page, 4, 0, 0) + body + PAGE_ID.pack(checksum(body))).ljust(size, b"\0")


def leaf(page: int, *elements: tuple[int, bytes, bytes], overflow: int = 0) -> bytes:
    head, data = PAGE.pack(page, LEAF, len(elements), overflow), b""
    for index, (flags, key, value) in enumerate(elements):
        head += LEAF_ELEMENT.pack(flags, 16 * (len(elements) - index) + len(data), len(key), len(value))
        data += key + value
    return (head + data).ljust((overflow + 1) * SIZE, b"\0") if page else head + data


def branch(page: int, *children: tuple[bytes, int]) -> bytes:
    head, data = PAGE.pack(page, BRANCH, len(children), 0), b""
    for index, (key, child) in enumerate(children):
        head += BRANCH_ELEMENT.pack(16 * (len(children) - index) + len(data), len(key), child)
        data += key
    return (head + data).ljust(SIZE, b"\0")


def free_list(page: int, *free: int, count: int | None = None) -> bytes:
    head = PAGE.pack(page, FREE_LIST, len(free) if count is None else count, 0)
    return (head + struct.pack(f"<{len(free)}Q", *free)).ljust(SIZE, b"\0")


def bucket(root: int, sequence: int = 0) -> bytes:
    return BUCKET.pack(root, sequence)


def image(*pages: bytes, root: int = 2, free: int = NO_FREE_LIST) -> bytes:
    body = b"".join(pages)
    high_water = 2 + len(body) // SIZE
    return meta(0, root, high_water, txid=0, free=free) + meta(1, root, high_water, free=free) + body


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "test.db"
    path.write_bytes(data)
    return path


def read(path: Path) -> list[Event]:
    with BoltFile(path) as file:
        return list(file.events())


def fault(tmp_path: Path, data: bytes) -> MooredError:
    with pytest.raises(MooredError) as caught:
        read(written(tmp_path, data))
    return caught.value


ROOT_LEAF = leaf(2, (1, b"a", bucket(3)))
GOOD = image(ROOT_LEAF, leaf(3, (0, b"k", b"v"), (0, b"l", b"w")))


def test_meta_of_a_new_file_is_read(tmp_path: Path) -> None:
    data = PAGE.pack(0, 4, 0, 0) + NEW_META
    path = written(tmp_path, data.ljust(2 * SIZE, b"\0") + free_list(2) + leaf(3))
    with BoltFile(path) as file:
        assert (file.meta.page_size, file.meta.root, file.meta.free_list, file.meta.high_water) == (SIZE, 3, 2, 4)
        assert list(file.events()) == [Enter(b"", 0), LEAVE]
        assert file.leaked == 0
    assert checksum(NEW_META[:56]) == int.from_bytes(NEW_META[56:], "little")


def test_root_leaf_is_written_as_bbolt_does(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    write_file(path, VERSION_TREE)
    data = path.read_bytes()
    assert len(data) == 3 * SIZE
    assert data[2 * SIZE + 8 :].rstrip(b"\0") == VERSION_LEAF
    assert read(path) == VERSION_TREE


def test_metas_are_one_transaction_apart(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    write_file(path, VERSION_TREE)
    data = path.read_bytes()
    metas = [META_BODY.unpack_from(data, page * SIZE + 16) for page in (0, 1)]
    assert [fields[-1] for fields in metas] == [0, 1]
    assert metas[0][:-1] == metas[1][:-1] == (MAGIC, 2, SIZE, 0, 2, 0, NO_FREE_LIST, 3)


def test_stored_free_list_is_an_empty_page(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    write_file(path, VERSION_TREE, stored_free_list=True)
    assert path.read_bytes()[3 * SIZE :] == free_list(3)
    assert read(path) == VERSION_TREE


def test_good_file_is_read(tmp_path: Path) -> None:
    events = [Enter(b"", 0), Enter(b"a", 0), Value(b"k", b"v"), Value(b"l", b"w"), LEAVE, LEAVE]
    assert read(written(tmp_path, GOOD)) == events


def test_newer_valid_meta_is_taken(tmp_path: Path) -> None:
    old, new = leaf(2), leaf(3, (1, b"new", bucket(0) + leaf(0)))
    path = written(tmp_path, meta(0, 3, 4, txid=8) + meta(1, 2, 4, txid=7) + old + new)
    assert Enter(b"new", 0) in read(path)
    data = bytearray(path.read_bytes())
    data[16 + 60] ^= 1
    assert read(written(tmp_path, bytes(data))) == [Enter(b"", 0), LEAVE]


@pytest.mark.parametrize("size", [1024, 4096, 16384, 65536])
def test_second_meta_is_found_at_any_page_size(size: int, tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    write_file(path, VERSION_TREE, page_size=size)
    data = bytearray(path.read_bytes())
    data[16:80] = bytes(64)
    assert read(written(tmp_path, bytes(data))) == VERSION_TREE


def test_second_meta_of_another_page_size_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, meta(0, 2, 3) + meta(1, 2, 3, txid=9, size=1024)[:1024].ljust(SIZE, b"\0") + leaf(2))
    with BoltFile(path) as file:
        assert file.meta.page_size == SIZE


@pytest.mark.parametrize(
    ("at", "value", "kind", "text"),
    [
        (16, b"\0", InvalidArgument, "invalid database: 0xed0cda00 at offset 16"),
        (20, b"\3", InvalidArgument, "version mismatch: 3 at offset 20"),
        (64, b"\xff", DataLoss, "checksum error: meta at offset 16"),
    ],
)
def test_two_bad_metas_are_told_by_the_first(
    at: int, value: bytes, kind: type[MooredError], text: str, tmp_path: Path
) -> None:
    data = bytearray(GOOD)
    data[at : at + 1] = value
    data[SIZE + 16] = 0
    error = fault(tmp_path, bytes(data))
    assert type(error) is kind
    assert text in error.text


HUGE = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (image(leaf(2, (1, b"a", bucket(3))), leaf(3), root=9), "root page 9"),
        (GOOD[:-1], "file ends at offset"),
        (image(leaf(2, (1, b"a", bucket(7)))), "reference to page 7"),
        (image(leaf(2, (1, b"a", bucket(1)))), "reference to page 1"),
        (image(ROOT_LEAF, leaf(4)), "page id 4 at offset 12288, wanted 3"),
        (image(ROOT_LEAF, PAGE.pack(3, LEAF, 0, 1).ljust(SIZE, b"\0")), "has 1 further pages"),
        (image(ROOT_LEAF, PAGE.pack(3, LEAF, 0, HUGE).ljust(SIZE, b"\0")), f"has {HUGE} further pages"),
        (image(ROOT_LEAF, PAGE.pack(3, LEAF | BRANCH, 0, 0).ljust(SIZE, b"\0")), "page flags 0x3"),
        (image(ROOT_LEAF, free_list(3)), "page flags 0x10"),
        (
            image(ROOT_LEAF, PAGE.pack(3, LEAF, 65535, 0).ljust(SIZE, b"\0")),
            "65535 elements at offset 12288 do not fit",
        ),
        (image(ROOT_LEAF, branch(3)), "branch page without children"),
        (image(ROOT_LEAF, leaf(3, (0, b"", b"v"))), "key of 0 bytes"),
        (image(ROOT_LEAF, leaf(3, (0, b"b", b""), (0, b"a", b""))), "wanted ascending order"),
        (image(ROOT_LEAF, leaf(3, (0, b"b", b""), (0, b"b", b""))), "wanted ascending order"),
        (image(ROOT_LEAF, leaf(3, (2, b"b", b""))), "leaf element flags 0x2"),
        (image(ROOT_LEAF, leaf(3, (0, b"k" * 32769, b""), overflow=8)), "key of 32769 bytes"),
        (image(leaf(2, (1, b"a", bucket(2)))), "page 2 at offset 8192 is used twice"),
        (image(leaf(2, (1, b"a", bucket(3)), (1, b"b", bucket(3))), leaf(3)), "page 3 at offset 12288 is used twice"),
        (image(ROOT_LEAF, branch(3, (b"a", 4), (b"b", 3)), leaf(4)), "page 3 at offset 12288 is used twice"),
        (image(ROOT_LEAF, branch(3, (b"b", 4), (b"a", 5)), leaf(4), leaf(5)), "wanted ascending order"),
        (image(ROOT_LEAF, branch(3, (b"b", 4), (b"d", 5)), leaf(4, (0, b"a", b"")), leaf(5)), "lies outside"),
        (image(ROOT_LEAF, branch(3, (b"b", 4), (b"d", 5)), leaf(4, (0, b"d", b"")), leaf(5)), "lies outside"),
        (image(leaf(2, (1, b"a", b"short"))), "bucket of 5 bytes"),
        (image(leaf(2, (1, b"a", bucket(3) + b"x")), leaf(3)), "bucket of 17 bytes"),
        (image(leaf(2, (1, b"a", bucket(0)))), "inline page of 0 bytes"),
        (image(leaf(2, (1, b"a", bucket(0) + PAGE.pack(0, BRANCH, 0, 0)))), "inline page 0 with flags 0x1"),
        (image(leaf(2, (1, b"a", bucket(0) + PAGE.pack(0, LEAF, 9, 0)))), "9 elements"),
        (image(ROOT_LEAF, leaf(3), free_list(4, 3), free=4), "page 3 at offset 12288 is used and listed as free"),
        (image(ROOT_LEAF, leaf(3), free_list(4, 4), free=4), "is used and listed as free"),
        (image(ROOT_LEAF, leaf(3), free_list(4, 9), free=4), "free page 9 after 1"),
        (image(leaf(2), leaf(3), leaf(4), free_list(5, 4, 3), free=5), "free page 3 after 4"),
        (image(leaf(2), free_list(3, count=65534), free=3), "free list of 65534 pages"),
        (image(leaf(2), free_list(3, 1 << 60, count=65535), free=3), f"free list of {1 << 60} pages"),
        (image(ROOT_LEAF, leaf(3), free=3), "wanted a free list"),
        (image(leaf(2), free=99), "reference to page 99"),
    ],
)
def test_broken_pages_are_data_loss(data: bytes, text: str, tmp_path: Path) -> None:
    error = fault(tmp_path, data)
    assert type(error) is DataLoss
    assert text in error.text


def test_element_outside_of_its_page_is_data_loss(tmp_path: Path) -> None:
    for element in (
        LEAF_ELEMENT.pack(0, 16, HUGE, 1),
        LEAF_ELEMENT.pack(0, 16, 1, HUGE),
        LEAF_ELEMENT.pack(0, HUGE, 1, 1),
        LEAF_ELEMENT.pack(0, 0, 1, 1),
        LEAF_ELEMENT.pack(0, SIZE - 17, 1, 1),
    ):
        page = (PAGE.pack(3, LEAF, 1, 0) + element).ljust(SIZE, b"x")
        assert "element at offset 12304" in fault(tmp_path, image(ROOT_LEAF, page)).text


def test_shared_bytes_are_data_loss(tmp_path: Path) -> None:
    # Without this rule a page of 64 KiB in every element would come out thousands of times.
    elements = LEAF_ELEMENT.pack(0, 32, 1, 1000) + LEAF_ELEMENT.pack(0, 17, 1, 1000)
    page = (PAGE.pack(3, LEAF, 2, 0) + elements + b"a" + b"b" * 2000).ljust(SIZE, b"\0")
    assert "element at offset 12320" in fault(tmp_path, image(ROOT_LEAF, page)).text


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    refuses(NotFound, lambda: BoltFile(tmp_path / "missing"))
    refuses(InvalidArgument, lambda: BoltFile(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    refuses(InvalidArgument, lambda: BoltFile(tmp_path / "fifo"))
    for data in (b"", b"x", bytes(SIZE), bytes(100_000), b"\xff" * 100_000):
        assert type(fault(tmp_path, data)) is InvalidArgument


def test_endless_pages_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, meta(0, 2, 1 << 40, txid=0) + meta(1, 2, 1 << 40) + leaf(2))
    refuses(ResourceExhausted, lambda: BoltFile(path))


def test_large_sparse_value_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    pages = 1 << 18
    value = HUGE // 8
    page = PAGE.pack(3, LEAF, 1, pages - 4) + LEAF_ELEMENT.pack(0, 16, 1, value) + b"k"
    path = written(tmp_path, meta(0, 2, pages, txid=0) + meta(1, 2, pages) + ROOT_LEAF + page)
    os.truncate(path, pages * SIZE)
    tracemalloc.start()
    with BoltFile(path) as file:
        refuses(ResourceExhausted, lambda: list(file.events()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    def nested(depth: int) -> bytes:
        inner = bucket(0) + leaf(0)
        for _ in range(depth - 1):
            inner = bucket(0) + leaf(0, (1, b"n", inner))
        pages = 1 + len(inner) // SIZE
        return image(leaf(2, (1, b"n", inner), overflow=pages))

    assert len(read(written(tmp_path, nested(MAX_DEPTH)))) == 2 + 2 * MAX_DEPTH
    assert "nested deeper than" in fault(tmp_path, nested(MAX_DEPTH + 1)).text
    assert "nested deeper than" in fault(tmp_path, nested(5000)).text


def test_endless_branches_are_refused(tmp_path: Path) -> None:
    pages = [branch(3 + index, (b"k", 4 + index)) for index in range(2000)]
    assert "deeper than" in fault(tmp_path, image(ROOT_LEAF, *pages, leaf(2003))).text


def test_leaked_pages_are_counted(tmp_path: Path) -> None:
    with BoltFile(written(tmp_path, image(ROOT_LEAF, leaf(3), leaf(4), free_list(5, 6), leaf(6), free=5))) as file:
        assert file.check() == 1


def test_empty_leaves_are_skipped(tmp_path: Path) -> None:
    data = image(ROOT_LEAF, branch(3, (b"b", 4), (b"d", 5)), leaf(4), leaf(5, (0, b"d", b"v")))
    assert Value(b"d", b"v") in read(written(tmp_path, data))


def test_file_in_use_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with path.open("r+b") as daemon:
        fcntl.flock(daemon, fcntl.LOCK_EX)
        refuses(FailedPrecondition, lambda: BoltFile(path))
        refuses(FailedPrecondition, lambda: write_file(path, VERSION_TREE))
    assert path.read_bytes() == GOOD


@pytest.mark.parametrize(
    "tree",
    [
        [],
        [Enter(b"", 0)],
        [Enter(b"", 0), Value(b"k", b"v"), LEAVE],
        [Enter(b"", 0), LEAVE, LEAVE],
        [Value(b"k", b"v")],
        [Enter(b"", 0), Enter(b"b", 0), LEAVE, Enter(b"a", 0), LEAVE, LEAVE],
        [Enter(b"", 0), Enter(b"b", 0), LEAVE, Enter(b"b", 0), LEAVE, LEAVE],
        [Enter(b"", 0), Enter(b"", 0), LEAVE, LEAVE],
        [Enter(b"", 0), Enter(b"b", 0), Value(b"k" * 32769, b""), LEAVE, LEAVE],
        [Enter(b"", 0), Enter(b"b", 1 << 64), LEAVE, LEAVE],
        [Enter(b"n", 0)] * (MAX_DEPTH + 2),
    ],
)
def test_impossible_trees_leave_the_old_file(tree: list[Event], tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    refuses(InvalidArgument, lambda: write_file(path, tree))
    assert path.read_bytes() == GOOD
    assert list(tmp_path.iterdir()) == [path]


def test_file_has_the_mode_that_was_wanted(tmp_path: Path) -> None:
    write_file(tmp_path / "a", VERSION_TREE)
    write_file(tmp_path / "b", VERSION_TREE, mode=0o644)
    assert [(tmp_path / name).stat().st_mode & 0o7777 for name in "ab"] == [0o600, 0o644]


def test_buckets_are_inline_up_to_a_quarter_page(tmp_path: Path) -> None:
    def pages(size: int) -> int:
        path = tmp_path / "t.db"
        write_file(path, [Enter(b"", 0), Enter(b"b", 0), Value(b"k", bytes(size)), LEAVE, LEAVE])
        return path.stat().st_size // SIZE

    fits = SIZE // 4 - 16 - 16 - 1
    assert [pages(fits), pages(fits + 1)] == [3, 4]


def test_branch_pages_have_two_children_at_least(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    # Keys longer than a page: a branch that holds one of them is full already.
    values = [Value(b"%05d" % number + b"k" * 5000, b"") for number in range(37)]
    write_file(path, [Enter(b"", 0), Enter(b"b", 7), *values, LEAVE, LEAVE])
    data = path.read_bytes()
    counts: list[int] = []
    at = 2 * SIZE
    while at < len(data):
        _, flags, count, overflow = PAGE.unpack_from(data, at)
        counts += [count] if flags == BRANCH else []
        at += (1 + overflow) * SIZE
    assert len(counts) > 3
    assert min(counts) >= 2
    assert read(path)[2:-2] == values


def many(count: int) -> Iterator[Event]:
    yield Enter(b"", 3)
    for name in range(4):
        yield Enter(b"%d" % name, name)
        for number in range(count):
            yield Value(b"%08d" % number, bytes(500))
        yield LEAVE
    yield LEAVE


def test_large_trees_pass_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    tracemalloc.start()
    write_file(path, many(5000))
    with BoltFile(path) as file:
        assert sum(isinstance(event, Value) for event in file.events()) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 10 << 20
    assert peak < 3 << 20


def test_copies_through_a_store_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moored.plugins.metadata.bbolt.copy.BATCH_BYTES", 1000)

    async def steps() -> None:
        write_file(tmp_path / "in", many(50))
        db = LmdbDatabase.opened(tmp_path / "db", limit=64 << 20)
        await import_file(tmp_path / "in", db)
        assert db.stats().commits > 50
        await export_file(db, tmp_path / "out", page_size=1024, stored_free_list=True)
        await fails_with(FailedPrecondition, import_file(tmp_path / "in", db))
        await db.close()
        assert read(tmp_path / "out") == read(tmp_path / "in") == list(many(50))

    asyncio.run(steps())


def test_failed_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moored.plugins.metadata.bbolt.copy.BATCH_BYTES", 1000)
    good = [(1, b"%d" % number, bucket(0) + leaf(0, (0, b"k", bytes(100)))) for number in range(9)]
    path = written(tmp_path, image(leaf(2, *good, (1, b"9", bucket(9)))))

    async def steps() -> None:
        db = MemoryDatabase()
        await fails_with(DataLoss, import_file(path, db))
        assert contents(db) == {}
        assert db.updates > 2

    asyncio.run(steps())
    path.rename(tmp_path / "renamed")
    with (tmp_path / "renamed").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
