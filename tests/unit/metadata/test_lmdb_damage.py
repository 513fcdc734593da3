"""Files with changed bytes: what opening finds before LMDB follows it, and that it finds nothing in good ones."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.errors import DataLoss, FailedPrecondition, InvalidArgument, MooredError
from moored.kernel.ports.metadata import Bucket
from moored.plugins.metadata.lmdb import mark
from moored.plugins.metadata.lmdb.archive import Archive, write_archive
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from moored.plugins.metadata.lmdb.folder import DATA, ENVIRONMENT, check_data_file
from moored.plugins.metadata.lmdb.store import Store

PAGE = 4096
HEADER = 16
MAIN = HEADER + 24 + 48
"""Offsets in a meta page: the tree of records, and in a tree: flags, levels, entries, root."""
FLAGS, LEVELS, ENTRIES, ROOT = 4, 6, 32, 40
LAST = HEADER + 120
HOUR = 3600 * 10**9
TRANSACTION = HEADER + 128
BRANCH, LEAF, OVERFLOW = 1, 2, 4


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with small and large buckets and values, long names, and free pages."""
    folder = tmp_path_factory.mktemp("good") / "store"

    @on_loop
    async def make() -> None:
        numbers = random.Random(1)
        database = LmdbDatabase.opened(folder)

        def fill(root: Bucket) -> None:
            for _ in range(40):
                top = root.create_bucket_if_missing(b"t%d" % numbers.randrange(3))
                bucket = top.create_bucket_if_missing(numbers.randbytes(numbers.choice((3, 20, 700))))
                for _ in range(numbers.randrange(1, 20)):
                    bucket.put(numbers.randbytes(8), numbers.randbytes(numbers.choice((3, 100, 100, 9000))))

        def thin(root: Bucket) -> None:
            bucket = root.bucket(b"t0")
            for name, _ in list(bucket.items())[:10] if bucket is not None else ():
                root.create_bucket_if_missing(b"t0").delete_bucket(name)

        for _ in range(12):
            await database.update(fill)
            await database.update(thin)
        await database.close()

    make()
    return folder


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "store")
    return tmp_path / "store"


def data(store: Path) -> Path:
    return store / ENVIRONMENT / DATA


def number(content: bytes | bytearray, offset: int, form: str = "<Q") -> int:
    return int(struct.unpack_from(form, content, offset)[0])


def newest(content: bytes | bytearray) -> int:
    """Where the meta page of the last commit is."""
    return max((0, PAGE), key=lambda at: number(content, at + TRANSACTION))


def page_of(content: bytes | bytearray, kind: int) -> int:
    """Where the first page of a kind is that the last commit uses; the root for branches."""
    root = number(content, newest(content) + MAIN + ROOT) * PAGE
    while number(content, root + 10, "<H") != kind:
        lower, offset = number(content, root + 12, "<H"), number(content, root + HEADER, "<H")
        if number(content, root + 10, "<H") == LEAF:
            large = (number(content, root + at, "<H") for at in range(HEADER, lower, 2))
            offset = next(node for node in large if number(content, root + node + 4, "<H") == 1)
            key = number(content, root + offset + 6, "<H")
            return number(content, root + offset + 8 + key) * PAGE
        root = (number(content, root + offset) & (1 << 48) - 1) * PAGE
    return root


def put(offset: int, value: int, form: str = "<H") -> Callable[[bytearray, int], None]:
    return lambda content, at: struct.pack_into(form, content, at + offset, value)


def first_node(content: bytearray, at: int) -> int:
    return at + number(content, at + HEADER, "<H")


DAMAGES: dict[str, tuple[Callable[[bytearray], int], Callable[[bytearray, int], None], str]] = {
    "flags of the tree": (newest, put(MAIN + FLAGS, 4), "has flags 0x4"),
    "levels": (newest, put(MAIN + LEVELS, 60), "has 60 levels"),
    "fewer levels": (newest, put(MAIN + LEVELS, 1), "is no leaf"),
    "entries": (newest, put(MAIN + ENTRIES, 5, "<Q"), "entries=5"),
    "root beyond the end": (newest, put(MAIN + ROOT, 1 << 40, "<Q"), "is none of pages 2 to"),
    "root that is a meta page": (newest, put(MAIN + ROOT, 1, "<Q"), "page 1 is none of pages"),
    "last page": (newest, put(LAST, 1 << 40, "<Q"), "is truncated"),
    "transaction": (newest, put(TRANSACTION, 1 << 50, "<Q"), "its last transactions are"),
    "page size": (newest, put(HEADER + 24, 8192, "<I"), "is no LMDB file|pages of"),
    "number of a page": (lambda c: page_of(c, LEAF), put(0, 3, "<Q"), "is no leaf"),
    "kind of a page": (lambda c: page_of(c, LEAF), put(10, BRANCH), "is no leaf"),
    "no nodes": (lambda c: page_of(c, LEAF), put(12, HEADER), "has its nodes from 16"),
    "nodes from beyond the page": (lambda c: page_of(c, LEAF), put(14, 5000), "has its nodes"),
    "node beyond the page": (lambda c: page_of(c, LEAF), put(HEADER, 4094), "out of their place"),
    "odd node": (lambda c: page_of(c, LEAF), lambda c, at: put(HEADER, first_node(c, at) - at + 1)(c, at), "out of"),
    "size of a key": (lambda c: first_node(c, page_of(c, LEAF)), put(6, 4000), "unknown kind"),
    "size of a value": (lambda c: first_node(c, page_of(c, LEAF)), put(2, 7), "leads out of it"),
    "kind of a node": (lambda c: first_node(c, page_of(c, LEAF)), put(4, 6), "unknown kind"),
    "order of keys": (lambda c: first_node(c, page_of(c, LEAF)), put(8, 0xFFFF), "out of order"),
    "branch to itself": (
        lambda c: first_node(c, page_of(c, BRANCH)),
        lambda c, at: put(0, at // PAGE)(c, at),
        "is used twice",
    ),
    "branch with one page": (lambda c: page_of(c, BRANCH), put(12, HEADER + 2), "leads to 1 pages"),
    "large value": (lambda c: page_of(c, OVERFLOW), put(12, 1, "<I"), "does not begin a value"),
    "large value beyond the end": (lambda c: page_of(c, OVERFLOW), put(12, 1 << 30, "<I"), "none of pages|used twice"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_structure_is_data_loss_that_names_the_file(store: Path, damage: str) -> None:
    where, change, text = DAMAGES[damage]
    content = bytearray(data(store).read_bytes())
    change(content, where(content))
    data(store).write_bytes(content)

    with pytest.raises(DataLoss, match=text) as raised:
        LmdbDatabase.opened(store)

    assert str(data(store)) in raised.value.text


def test_list_of_free_pages_that_names_one_in_use_is_data_loss(store: Path) -> None:
    content = bytearray(data(store).read_bytes())
    tree = newest(content) + HEADER + 24
    leaf = number(content, tree + ROOT) * PAGE
    at = first_node(content, leaf)
    struct.pack_into("<Q", content, at + 8 + 8 + 8, number(content, tree + 48 + ROOT))
    data(store).write_bytes(content)

    with pytest.raises(DataLoss, match="is used twice"):
        check_data_file(data(store))


@pytest.mark.parametrize(("text", "kind"), [(b"moored-buckets 3", FailedPrecondition), (b"moored-budkets 2", DataLoss)])
def test_format_of_the_future_is_told_from_none(store: Path, text: bytes, kind: type[MooredError]) -> None:
    content = data(store).read_bytes()
    assert content.count(b"moored-buckets 2")
    data(store).write_bytes(content.replace(b"moored-buckets 2", text))

    with pytest.raises(kind, match=r"has format b'moored-bu") as raised:
        LmdbDatabase.opened(store)

    assert str(store) in raised.value.text


@on_loop
async def test_flipped_bits_are_found_or_harm_nothing_else(good: Path, tmp_path: Path) -> None:
    """LMDB would end the process over many of these: that this test comes to its end is half of what it shows."""
    content = data(good).read_bytes()
    outcomes: Counter[str] = Counter()
    for seed in range(150):
        numbers = random.Random(seed)
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        changed = bytearray(content)
        for _ in range(numbers.choice((1, 1, 4, 30))):
            page = numbers.choice((numbers.randrange(4), numbers.randrange(len(content) // PAGE)))
            changed[page * PAGE + numbers.randrange(numbers.choice((64, PAGE)))] ^= 1 << numbers.randrange(8)
        data(folder).write_bytes(changed)
        outcomes[await used(folder)] += 1

    assert set(outcomes) >= {"opened", "refused"}
    assert outcomes["refused"] > 20


async def used(folder: Path) -> str:
    """What comes of opening it, reading all, and writing."""
    try:
        database = LmdbDatabase.opened(folder)
    except DataLoss:
        return "refused"
    try:
        with database.view() as root:
            for _, tree in root.trees():
                assert isinstance(tree, dict)
        await database.update(lambda root: root.create_bucket_if_missing(b"new").put(b"k", b"v" * 9000))
    except DataLoss:
        return "damaged"
    finally:
        await database.close()
    return "opened"


# --- files that need no walk ------------------------------------------------------------------------------------------


def marked(store: Path, later: int = HOUR) -> None:
    """Have a store look as if it was closed as it is now, so many ns after it was last written to."""
    with data(store).open("rb") as file:
        content = file.read()
        mark.put(store, file.fileno(), number(content, newest(content) + TRANSACTION))
        closed_at = os.fstat(file.fileno()).st_ctime_ns + later
    os.utime(store / mark.CLOSED, ns=(closed_at, closed_at))


def damage_entries(store: Path) -> None:
    """Change what LMDB goes by nowhere."""
    where, change, _ = DAMAGES["entries"]
    content = bytearray(data(store).read_bytes())
    change(content, where(content))
    data(store).write_bytes(content)


def close(database: LmdbDatabase) -> None:
    asyncio.run(database.close())


def test_file_that_is_as_it_was_closed_is_not_walked(store: Path) -> None:
    damage_entries(store)
    for _ in range(2):
        marked(store)

        close(LmdbDatabase.opened(store))


def test_orderly_close_marks_the_file_as_it_is(store: Path) -> None:
    database = LmdbDatabase.opened(store)
    assert not (store / mark.CLOSED).exists()
    asyncio.run(changed(database))

    content = data(store).read_bytes()
    closed_at = data(store).stat().st_ctime_ns + 1
    os.utime(store / mark.CLOSED, ns=(closed_at, closed_at))
    found = mark.take(store)
    assert found.fits(data(store).stat(), number(content, newest(content) + TRANSACTION))
    assert not found.fits(data(store).stat(), number(content, newest(content) + TRANSACTION) + 1)
    assert not mark.take(store).fits(data(store).stat(), number(content, newest(content) + TRANSACTION))


async def changed(database: LmdbDatabase) -> None:
    await database.update(lambda root: root.create_bucket(b"new"))
    await database.close()


def replaced(store: Path) -> None:
    """The same bytes and times in another file."""
    shutil.copy2(data(store), store / "copy")
    (store / "copy").rename(data(store))


def halved(store: Path) -> None:
    content = (store / mark.CLOSED).read_bytes()
    status = (store / mark.CLOSED).stat()
    (store / mark.CLOSED).write_bytes(content[:-1])
    os.utime(store / mark.CLOSED, ns=(status.st_mtime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda store: os.utime(data(store)),
        lambda store: os.utime(data(store), ns=(data(store).stat().st_mtime_ns,) * 2),
        lambda store: os.truncate(data(store), data(store).stat().st_size + PAGE),
        replaced,
        halved,
        lambda store: (store / mark.CLOSED).unlink(),
        lambda store: marked(store, later=0),
    ],
    ids=["written", "written, time put back", "longer", "another file", "half a mark", "no mark", "in the same tick"],
)
def test_file_that_may_have_changed_since_is_walked(store: Path, change: Callable[[Path], None]) -> None:
    damage_entries(store)
    marked(store)
    change(store)

    with pytest.raises(DataLoss, match="entries=5"):
        LmdbDatabase.opened(store)


def test_file_is_walked_after_a_crash(store: Path) -> None:
    marked(store)
    crash = (
        f"import os; from moored.plugins.metadata.lmdb.database import LmdbDatabase as D; D.opened(P({str(store)!r}))"
    )
    subprocess.run([sys.executable, "-c", f"from pathlib import Path as P; {crash}; os._exit(0)"], check=True)
    assert not (store / mark.CLOSED).exists()
    damage_entries(store)

    with pytest.raises(DataLoss, match="entries=5"):
        LmdbDatabase.opened(store)


async def viewed(database: LmdbDatabase) -> None:
    with database.view() as root:
        dict(root.trees())


READS: dict[str, Callable[[LmdbDatabase], Awaitable[object]]] = {
    "view": viewed,
    "update": lambda database: database.update(lambda root: dict(root.trees())),
}


@pytest.mark.parametrize("how", READS)
def test_file_that_was_found_damaged_in_use_is_walked_next_time(store: Path, how: str) -> None:
    content = bytearray(data(store).read_bytes())
    root = number(content, newest(content) + MAIN + ROOT) * PAGE
    last = number(content, root + number(content, root + 12, "<H") - 2, "<H")
    struct.pack_into("<I", content, root + last, 1 << 30)
    data(store).write_bytes(content)
    marked(store)

    @on_loop
    async def use() -> None:
        database = LmdbDatabase.opened(store)
        with pytest.raises(DataLoss):
            await READS[how](database)
        await database.close()

    use()
    with pytest.raises(DataLoss, match="is none of pages"):
        LmdbDatabase.opened(store)


# --- backups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def backup(store: Path, tmp_path: Path) -> Path:
    """The store twice: as below the root, and as elsewhere."""
    file = tmp_path / "backup"

    @on_loop
    async def make() -> None:
        opened = Store(store)
        with opened.frozen() as copy, file.open("w+b") as target:
            write_archive(target.fileno(), tmp_path, [(store, copy), (Path("/else where/store"), copy)])
        await opened.close()

    make()
    return file


def test_backup_names_folders_below_the_root_and_elsewhere(backup: Path, tmp_path: Path) -> None:
    with backup.open("rb") as file:
        archive = Archive(file, "b")

        assert [(one.member, str(one.below(Path("/r")))) for one in archive.databases] == [
            ("store/environment/data.mdb", "/r/store"),
            ("outside/1/data.mdb", "/else where/store"),
        ]
        for number_, one in enumerate(archive.databases):
            archive.unpack(one, tmp_path / f"back-{number_}")
            check_data_file(data(tmp_path / f"back-{number_}"))


def test_cut_or_changed_backup_is_never_taken_for_whole(backup: Path, tmp_path: Path) -> None:
    whole = backup.read_bytes()
    numbers = random.Random(3)
    # The tail behind the manifest is padding.
    cut = [whole[: numbers.randrange(len(whole) - 2048)] for _ in range(40)]
    changed = []
    for _ in range(40):
        content = bytearray(whole)
        content[numbers.choice((numbers.randrange(len(whole)), numbers.randrange(512)))] ^= 1 << numbers.randrange(8)
        changed.append(bytes(content))
    for at, content in enumerate([*cut, *changed]):
        backup.write_bytes(content)
        taken = 0
        with backup.open("rb") as file:
            try:
                archive = Archive(file, "b")
                for one in archive.databases:
                    archive.unpack(one, tmp_path / f"{at}-{taken}")
                    taken += 1
            except (DataLoss, InvalidArgument, FailedPrecondition):
                continue
        # A bit that means nothing: padding, times, owners.
        assert at >= len(cut)
        assert all(data(tmp_path / f"{at}-{n}").read_bytes() in whole for n in range(taken))


@pytest.mark.parametrize("folder", ["../up", "/a/../b", "a//b", "", "a/../../b", "./a"])
def test_backup_with_a_folder_that_leads_elsewhere_is_refused(backup: Path, folder: str) -> None:
    whole = backup.read_bytes()
    at = whole.index(b'{"format"')
    end = whole.index(b"]}", at) + 2
    manifest = whole[at:end].replace(b'"folder":"store"', b'"folder":"%s"' % folder.encode()).ljust(end - at)
    # The list has room to shrink: the name of the other folder is as good shorter.
    manifest = manifest if len(manifest) == end - at else manifest.replace(b"/else where/store", b"/e")[: end - at]
    backup.write_bytes(whole[:at] + manifest.ljust(end - at) + whole[end:])

    with backup.open("rb") as file, pytest.raises(InvalidArgument, match="has a database of folder"):
        Archive(file, "b")
