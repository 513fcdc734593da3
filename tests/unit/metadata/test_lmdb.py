"""The LMDB store's own rules: its folder, its layout, its limits, its writer thread."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import lmdb
import msgspec
import pytest

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.conformance.metadata import contents
from moored.kernel.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME, Bucket
from moored.plugins.metadata.lmdb import environment, small, store
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from moored.plugins.metadata.lmdb.layout import (
    BUCKET_TAG,
    FORMAT,
    FORMAT_KEY,
    ID,
    MAX_LMDB_KEY,
    NEXT_KEY,
    OLD_FORMAT,
    ROOT,
    SMALL_TAG,
    VALUE_TAG,
)
from moored.plugins.metadata.lmdb.records import Records
from unit.descriptors import descriptors

LIMIT = 8 << 20


@asynccontextmanager
async def opened(folder: Path, limit: int = LIMIT) -> AsyncIterator[LmdbDatabase]:
    db = LmdbDatabase.opened(folder, limit=limit)
    try:
        yield db
    finally:
        await db.close()


def run(steps: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await steps()

    asyncio.run(main())


def fill(root: Bucket, name: bytes = b"b", size: int = 100) -> None:
    root.create_bucket_if_missing(name).put(b"k", b"v" * size)


def made(folder: Path) -> Path:
    """Make a store with something in it; give its data file."""

    async def steps() -> None:
        async with opened(folder) as db:
            await db.update(fill)

    run(steps)
    return folder / "environment" / "data.mdb"


def records(folder: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(folder / "environment"), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def test_contents_survive_reopening(tmp_path: Path) -> None:
    made(tmp_path / "db")

    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            assert contents(db) == {b"b": (0, {b"k": b"v" * 100})}

    run(steps)


def test_modes_are_private_whatever_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    folder.mkdir(mode=0o755)
    made(folder)
    assert folder.stat().st_mode & 0o7777 == 0o700
    assert (folder / "environment").stat().st_mode & 0o7777 == 0o700
    assert {path.stat().st_mode & 0o7777 for path in folder.rglob("*") if path.is_file()} == {0o600}


def descriptors_below(folder: Path) -> list[int]:
    """Give those of this process that are open below `folder`."""
    return [int(link.name) for link in Path("/proc/self/fd").iterdir() if folder in link.resolve().parents]


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            await db.update(fill)
            ours = descriptors_below(tmp_path)
            assert len(ours) >= 3
            assert not any(os.get_inheritable(fd) for fd in ours)

    run(steps)


def test_reader_table_has_no_holes(tmp_path: Path) -> None:
    status = made(tmp_path / "db").with_name("lock.mdb").stat()
    assert status.st_blocks * 512 >= status.st_size > 64 << 10

    async def steps() -> None:
        async with opened(tmp_path / "db") as db, AsyncExitStack() as views:
            for _ in range(1000):
                views.enter_context(db.view())
            assert db.stats().views == 1000

    run(steps)


def test_second_opener_is_told_the_first(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db"):
            error = refuses(FailedPrecondition, lambda: LmdbDatabase.opened(tmp_path / "db"))
            assert f"in use by process {os.getpid()}" in error.text
        async with opened(tmp_path / "db"):
            pass

    run(steps)


def test_failed_opening_leaves_no_lock_and_no_descriptor(tmp_path: Path) -> None:
    made(tmp_path / "db").write_bytes(b"")
    before = descriptors()
    for _ in range(3):
        refuses(DataLoss, lambda: LmdbDatabase.opened(tmp_path / "db"))
    assert descriptors() == before


def test_missing_store_is_created_only_if_wanted(tmp_path: Path) -> None:
    refuses(NotFound, lambda: LmdbDatabase.opened(tmp_path / "db", create=False))
    made(tmp_path / "db")
    asyncio.run(LmdbDatabase.opened(tmp_path / "db", create=False).close())


def test_interrupted_creation_is_begun_anew(tmp_path: Path) -> None:
    leftover = tmp_path / "db" / "environment.new"
    leftover.mkdir(parents=True)
    (leftover / "data.mdb").write_bytes(b"half")
    made(tmp_path / "db")
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "no LMDB file"),
        (lambda path: path.write_bytes(b"garbage" * 10_000), "no LMDB file"),
        (lambda path: os.truncate(path, 3 * 4096), "is truncated: 12288 bytes"),
        (lambda path: os.truncate(path, 100), "no LMDB file"),
    ],
)
def test_damaged_file_is_refused_and_kept(damage: Callable[[Path], None], wanted: str, tmp_path: Path) -> None:
    data = made(tmp_path / "db")
    damage(data)
    before = data.read_bytes() if data.exists() else None
    error = refuses(DataLoss, lambda: LmdbDatabase.opened(tmp_path / "db"))
    assert wanted in error.text
    assert (data.read_bytes() if data.exists() else None) == before


def test_other_formats_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "db")
    with lmdb.open(str(tmp_path / "db" / "environment")) as env, env.begin(write=True) as txn:
        txn.put(FORMAT_KEY, b"moored-buckets 3")
    error = refuses(FailedPrecondition, lambda: LmdbDatabase.opened(tmp_path / "db"))
    assert "moored-buckets 3" in error.text
    with lmdb.open(str(tmp_path / "db" / "environment")) as env, env.begin(write=True) as txn:
        txn.delete(FORMAT_KEY)
    refuses(DataLoss, lambda: LmdbDatabase.opened(tmp_path / "db"))


def test_keys_fit_and_long_names_go_without_trace(tmp_path: Path) -> None:
    folder = tmp_path / "db"

    def put(root: Bucket) -> None:
        bucket = root.create_bucket(b"b")
        bucket.put(b"k" * MAX_KEY, b"v")
        bucket.create_bucket(b"k" * MAX_NAME).create_bucket(b"l" * 5000).put(b"m" * 5000, b"v")

    async def filled() -> None:
        async with opened(folder) as db:
            await db.update(put)

    async def emptied() -> None:
        async with opened(folder) as db:
            await db.update(lambda root: root.delete_bucket(b"b"))

    run(filled)
    assert max(len(key) for key, _ in records(folder)) == MAX_LMDB_KEY
    run(emptied)
    assert [key for key, _ in records(folder)] == [FORMAT_KEY, NEXT_KEY]


def test_last_long_name_takes_its_continuations_along(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    names = [b"k" * length for length in (600, 1600, 1601, 5000)]

    def put(root: Bucket) -> None:
        bucket = root.create_bucket(b"b")
        bucket.put(b"large", bytes(small.MAX_BYTES))  # so that the bucket has a space of its own
        for name in names:
            bucket.put(name, b"v")

    def delete(root: Bucket) -> None:
        bucket = root.bucket(b"b")
        assert bucket is not None
        for name in (b"large", *names):
            bucket.delete(name)

    async def steps() -> None:
        async with opened(folder) as db:
            await db.update(put)
            await db.update(delete)

    run(steps)
    assert [key for key, _ in records(folder)] == [FORMAT_KEY, NEXT_KEY, (1).to_bytes(8, "big") + b"b"]


def test_unknown_records_are_data_loss(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    made(folder)
    with lmdb.open(str(folder / "environment")) as env, env.begin(write=True) as txn:
        txn.put((1).to_bytes(8, "big") + b"x", b"\x09rubbish")

    async def steps() -> None:
        async with opened(folder) as db:
            with db.view() as root:
                refuses(DataLoss, lambda: root.bucket(b"x"))
                refuses(DataLoss, lambda: list(root.items()))
                assert root.bucket(b"b") is not None

    run(steps)


def test_format_1_is_read_and_renamed(tmp_path: Path) -> None:
    made(folder := tmp_path / "db")
    second, third = ID.pack(2), ID.pack(3)
    with lmdb.open(str(folder / "environment")) as env, env.begin(write=True) as txn:
        for key in (FORMAT_KEY, ROOT + b"b"):
            txn.delete(key)
        txn.put(FORMAT_KEY, OLD_FORMAT)
        txn.put(NEXT_KEY, ID.pack(4))
        txn.put(ROOT + b"old", BUCKET_TAG + second)
        txn.put(second, ID.pack(7))
        txn.put(second + b"k", VALUE_TAG + b"v")
        txn.put(second + b"below", BUCKET_TAG + third)
        txn.put(third + b"l", VALUE_TAG + b"w")

    async def steps() -> None:
        async with opened(folder) as db:
            assert contents(db) == {b"old": (7, {b"k": b"v", b"below": (0, {b"l": b"w"})})}
            with db.view() as root:
                assert list(root.trees()) == [(b"old", {b"k": b"v", b"below": {b"l": b"w"}})]
            await db.update(lambda root: root.create_bucket_if_missing(b"old").create_bucket(b"new").put(b"m", b"x"))

    run(steps)
    found = dict(records(folder))
    assert found[FORMAT_KEY] == FORMAT
    assert found[second + b"new"] == SMALL_TAG + msgspec.msgpack.encode({b"m": b"x"})


def test_an_object_is_one_record(tmp_path: Path) -> None:
    folder = tmp_path / "db"

    def put(root: Bucket, number: int) -> None:
        record = root.create_bucket_if_missing(b"objects").create_bucket(b"%02d" % number)
        record.put(b"name", b"n")
        record.create_bucket(b"labels").put(b"k", b"v")

    async def few() -> None:
        async with opened(folder) as db:
            for number in range(small.MAX_ENTRIES):
                await db.update(lambda root, n=number: put(root, n))  # type: ignore[misc]

    async def outgrow() -> None:
        async with opened(folder) as db:
            await db.update(lambda root: put(root, 99))

    run(few)
    assert [key for key, _ in records(folder)] == [FORMAT_KEY, ROOT + b"objects"]
    run(outgrow)
    tree = SMALL_TAG + msgspec.msgpack.encode({b"name": b"n", b"labels": {b"k": b"v"}})
    found = dict(records(folder))
    assert found[ROOT + b"objects"] == BUCKET_TAG + ID.pack(2)
    assert [found[ID.pack(2) + b"%02d" % number] for number in (*range(small.MAX_ENTRIES), 99)] == [tree] * 17


def test_spaces_of_what_did_not_come_to_be_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(root: Bucket, value: bytes = b"v") -> None:
        bucket = root.create_bucket(b"large")
        for number in range(small.MAX_ENTRIES + 1):
            bucket.put(b"%02d" % number, value)
        list(root.items())  # writes it
        found = root.bucket(b"large")
        assert found is not None
        assert found.get(b"00") == value

    def grow_and_fail(root: Bucket) -> None:
        grow(root, b"lost")
        raise KeyError("undone")

    def value(root: Bucket) -> bytes | None:
        bucket = root.bucket(b"large")
        return None if bucket is None else bucket.get(b"00")

    def delete(root: Bucket) -> None:
        root.delete_bucket(b"large")

    def refuse(*_: object) -> None:
        raise ResourceExhausted("no room")

    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            with pytest.raises(KeyError):
                await db.update(grow_and_fail)
            after_failure = await db.update(value)
            with monkeypatch.context() as patched:
                patched.setattr(environment.Environment, "commit", refuse)
                await fails_with(ResourceExhausted, db.update(grow))
            after_lost_commit = await db.update(value)
            await db.update(lambda root: grow(root, b"old"))
            before = await db.update(value)
            await db.update(delete)
            after_delete = await db.update(value)
            await db.update(lambda root: root.create_bucket(b"large").put(b"00", b"new"))
            assert [after_failure, after_lost_commit, before, after_delete] == [None, None, b"old", None]
            assert await db.update(value) == b"new"

    run(steps)


def test_links_to_spaces_follow_every_write(tmp_path: Path) -> None:
    env = environment.Environment(tmp_path / "db", limit=LIMIT)
    txn = env.begin_write()
    links: dict[bytes, bytes] = {}
    found = Records(txn, writable=True, links=links)
    key, first, second = ID.pack(7) + b"name", BUCKET_TAG + ID.pack(8), BUCKET_TAG + ID.pack(9)
    try:
        seen = [found.link(key)]
        for write in (
            lambda: found.put(key, first),
            lambda: found.put(key, second),
            lambda: found.delete(key),
            lambda: found.put(key, first),
            lambda: found.sweep(ID.pack(7)),
            lambda: found.put(key, VALUE_TAG + second),
        ):
            write()
            seen += [found.link(key), found.link(key)]
    finally:
        found.end()
        txn.abort()
        env.close()

    assert seen[::2] == [None, first, second, None, first, None, VALUE_TAG + second]
    assert seen[1::2] == seen[2::2]
    assert links == {}


def test_handles_follow_a_bucket_that_outgrows_its_record(tmp_path: Path) -> None:
    def grow(root: Bucket) -> None:
        outer = root.create_bucket(b"outer")
        inner = outer.create_bucket(b"inner")
        doomed = outer.create_bucket(b"doomed")
        inner.set_sequence(5)
        inner.put(b"large", bytes(small.MAX_BYTES + 1))
        inner.put(b"later", b"1")
        outer.put(b"beside", b"2")
        assert (inner.sequence(), inner.get(b"later"), outer.get(b"beside")) == (5, b"1", b"2")
        outer.delete_bucket(b"doomed")
        refuses(NotFound, lambda: doomed.put(b"k", b"v"))
        root.delete_bucket(b"outer")
        refuses(NotFound, lambda: inner.get(b"later"))
        root.create_bucket(b"outer").put(b"k", b"v")

    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            await db.update(grow)
            assert contents(db) == {b"outer": (0, {b"k": b"v"})}

    run(steps)


@pytest.mark.parametrize(
    "damage", [b"\x03", b"\x03\xc1", b"\x03\x91\x01", b"\x03\x81\xc4\x01k\x05", b"\x04\x81\xc4\x00\x01"]
)
def test_damaged_small_buckets_are_data_loss(damage: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "db"
    made(folder)
    with lmdb.open(str(folder / "environment")) as env, env.begin(write=True) as txn:
        txn.put(ROOT + b"x", damage)

    def read(root: Bucket) -> object:
        bucket = root.bucket(b"x")
        return bucket and (bucket.bucket(b"k"), bucket.sequence())

    async def steps() -> None:
        async with opened(folder) as db:
            with db.view() as root:
                refuses(DataLoss, lambda: read(root))
                assert root.bucket(b"b") is not None

    run(steps)


def test_limit_refuses_puts_and_lets_deletes_pass(tmp_path: Path) -> None:
    limit = 2 << 20

    def put(root: Bucket, number: int) -> None:
        root.create_bucket_if_missing(b"b").put(b"%05d" % number, bytes(4000))

    def delete(root: Bucket, number: int) -> None:
        bucket = root.bucket(b"b")
        assert bucket is not None
        bucket.delete(b"%05d" % number)

    async def steps() -> None:
        async with opened(tmp_path / "db", limit) as db:
            stored = 0
            while not db.stats().full:
                await db.update(lambda root, number=stored: put(root, number))  # type: ignore[misc]
                stored += 1
            await fails_with(ResourceExhausted, db.update(lambda root: put(root, 9999)))
            assert db.stats().used_bytes >= limit
            for number in range(stored):
                await db.update(lambda root, number=number: delete(root, number))  # type: ignore[misc]
            await db.update(lambda root: put(root, 1))
            assert stored > 200

    run(steps)


def test_update_beyond_the_map_fails_alone(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db", 1 << 20) as db:
            outcomes = await asyncio.gather(
                db.update(lambda root: fill(root, b"a")),
                db.update(lambda root: fill(root, b"huge", 16 << 20)),
                db.update(lambda root: fill(root, b"c")),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), ResourceExhausted, type(None)]
            assert sorted(contents(db)) == [b"a", b"c"]

    run(steps)


def test_swallowed_lack_of_room_still_fails_the_update(tmp_path: Path) -> None:
    def swallow(root: Bucket) -> None:
        fill(root, b"part")
        refuses(ResourceExhausted, lambda: fill(root, b"huge", 16 << 20))

    async def steps() -> None:
        async with opened(tmp_path / "db", 1 << 20) as db:
            await db.update(fill)
            await fails_with(ResourceExhausted, db.update(swallow))
            assert sorted(contents(db)) == [b"b"]

    run(steps)


def test_failed_commit_reaches_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_commit(_self: object, txn: lmdb.Transaction[bytes]) -> None:
        txn.abort()
        raise ResourceExhausted("no room")

    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            await db.update(fill)
            with monkeypatch.context() as patch:
                patch.setattr(environment.Environment, "commit", no_commit)
                names = [b"%d" % number for number in range(5)]
                updates = [db.update(lambda root, name=name: fill(root, name)) for name in names]  # type: ignore[misc]
                outcomes = await asyncio.gather(*updates, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [ResourceExhausted] * 5
            await db.update(lambda root: fill(root, b"later"))
            assert sorted(contents(db)) == [b"b", b"later"]

    run(steps)


def test_concurrent_updates_share_commits(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            await asyncio.gather(*(db.update(fill) for _ in range(100)))
            stats = db.stats()
            assert stats.updates == 100
            assert stats.commits < 50

    run(steps)


def test_updates_run_on_the_writer_thread(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            threads = {await db.update(lambda _: threading.current_thread()) for _ in range(3)}
            assert len(threads) == 1
            assert threads != {threading.main_thread()}
        assert not threads.pop().is_alive()

    run(steps)


def test_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_QUEUED", 2)

    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            gate = threading.Event()
            ran: list[int] = []

            def change(_: Bucket, number: int) -> None:
                gate.wait(10)
                ran.append(number)

            tasks = [asyncio.create_task(db.update(lambda root, n=n: change(root, n))) for n in range(6)]
            await asyncio.sleep(0)
            assert db.stats().waiting == 6
            for task in (tasks[1], *tasks[3:5]):
                task.cancel()
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert ran == [0, 2, 5], "who was cancelled while queued or waiting for the queue never ran"
            assert db.stats().waiting == 0

    run(steps)


def test_second_event_loop_is_refused(tmp_path: Path) -> None:
    db = LmdbDatabase.opened(tmp_path / "db", limit=LIMIT)
    asyncio.run(db.update(fill))
    with pytest.raises(Internal):
        asyncio.run(db.update(fill))
    asyncio.run(db.close())


def test_views_are_counted_and_aged(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            await db.update(fill)
            with db.view(), db.view():
                assert db.stats().views == 2
                assert db.stats().oldest_view_seconds >= 0
            assert db.stats().views == 0
            assert db.stats().oldest_view_seconds == 0

    run(steps)


def test_view_that_outlives_the_store_fails_softly(tmp_path: Path) -> None:
    async def steps() -> None:
        db = LmdbDatabase.opened(tmp_path / "db", limit=LIMIT)
        await db.update(fill)
        with db.view() as root:
            await db.close()
            refuses(Unavailable, lambda: root.bucket(b"b"))

    run(steps)


def test_backup_is_a_store(tmp_path: Path) -> None:
    async def steps() -> None:
        async with opened(tmp_path / "db") as db:
            await db.update(fill)
            await db.backup(tmp_path / "copy")
            await db.update(lambda root: root.delete_bucket(b"b"))
        async with opened(tmp_path / "copy") as copy:
            assert contents(copy) == {b"b": (0, {b"k": b"v" * 100})}
        assert not (tmp_path / "copy.new").exists()

    run(steps)


def test_fork_is_refused(tmp_path: Path) -> None:
    script = """
import asyncio, os, sys
from pathlib import Path
from moored.kernel.errors import Unavailable
from moored.plugins.metadata.lmdb.database import LmdbDatabase

db = LmdbDatabase.opened(Path(sys.argv[1]), limit=1 << 20)
if (child := os.fork()) == 0:
    try:
        with db.view():
            os._exit(1)
    except Unavailable as error:
        os._exit(0 if "fork" in error.text else 2)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(db.close())
"""
    paths = str(Path(__file__).resolve().parents[3] / "contrib" / "dev")
    command = [sys.executable, "-c", script, str(tmp_path / "db")]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode == 0
