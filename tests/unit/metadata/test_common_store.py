"""Databases that share one store: apart for who uses them, one commit for what changes several, and one copy."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.errors import DataLoss, FailedPrecondition, Internal, Unavailable
from moored.kernel.ports.metadata import Bucket, Database
from moored.plugins.metadata.lmdb.database import LmdbDatabase, Part, parts_of
from moored.plugins.metadata.lmdb.opener import LmdbOpener
from moored.plugins.metadata.lmdb.store import Store

TOP = b"v1"


def opener_in(root: Path) -> LmdbOpener:
    return LmdbOpener(structlog.get_logger(), root, root / "common")


def value_in(root: Bucket) -> bytes | None:
    top = root.bucket(TOP)
    return None if top is None else top.get(b"k")


def value_of(database: Database) -> bytes | None:
    with database.view() as root:
        return value_in(root)


async def write(database: Database, value: bytes) -> None:
    await database.update(lambda root: root.create_bucket_if_missing(TOP).put(b"k", value))


def test_databases_below_the_root_share_a_store_and_see_nothing_of_each_other(tmp_path: Path) -> None:
    async def steps() -> None:
        opener = opener_in(tmp_path)
        first, second = await opener.open(tmp_path / "a"), await opener.open(tmp_path / "b" / "metadata")
        await write(first, b"1")
        assert (value_of(first), value_of(second)) == (b"1", None)
        assert first.file is second.file
        assert opener.home(tmp_path / "a") == tmp_path / "common"
        assert not (tmp_path / "a").exists()
        for one in (first, second):
            await one.close()

    asyncio.run(steps())
    store = Store(tmp_path / "common", create=False)
    assert parts_of(store) == ["a", "b/metadata"]
    asyncio.run(store.close())


def test_database_elsewhere_has_its_folder_to_itself(tmp_path: Path) -> None:
    async def steps() -> None:
        opener = opener_in(tmp_path / "root")
        inside, outside = await opener.open(tmp_path / "root" / "a"), await opener.open(tmp_path / "other")
        assert inside.file is not outside.file
        assert opener.home(tmp_path / "other") == tmp_path / "other"
        assert (tmp_path / "other" / "environment").is_dir()
        await inside.close()
        await outside.close()

    asyncio.run(steps())


@pytest.mark.parametrize("fails", [False, True])
def test_one_update_changes_both_or_none(fails: bool, tmp_path: Path) -> None:
    async def steps() -> None:
        opener = opener_in(tmp_path)
        first, second = await opener.open(tmp_path / "a"), await opener.open(tmp_path / "b")
        commits = first.stats().commits

        def change(root: Bucket) -> None:
            top = root.create_bucket(TOP)
            top.put(b"k", b"1")
            second.root_in(top).create_bucket(TOP).put(b"k", b"2")
            if fails:
                raise KeyError("enough")

        if fails:
            with pytest.raises(KeyError):
                await first.update(change)
        else:
            await first.update(change)
        assert (value_of(first), value_of(second)) == ((None, None) if fails else (b"1", b"2"))
        assert first.stats().commits == commits + (not fails)
        await first.close()
        await second.close()

    asyncio.run(steps())


def test_bucket_of_another_file_is_refused(tmp_path: Path) -> None:
    class Foreign:
        pass

    async def steps() -> None:
        opener = opener_in(tmp_path)
        database = await opener.open(tmp_path / "a")
        refuses(Internal, lambda: database.root_in(Foreign()))  # type: ignore[arg-type]
        await database.close()

    asyncio.run(steps())


def test_store_is_open_while_any_of_its_databases_is(tmp_path: Path) -> None:
    async def steps() -> None:
        opener = opener_in(tmp_path)
        first, second = await opener.open(tmp_path / "a"), await opener.open(tmp_path / "b")
        await fails_with(FailedPrecondition, opener.open(tmp_path / "a"))
        writing = asyncio.ensure_future(write(first, b"1"))
        await asyncio.sleep(0)
        await first.close()
        await first.close()
        assert writing.done()
        await fails_with(Unavailable, write(first, b"2"), "metadata store has stopped: it is closed")
        refuses(Unavailable, lambda: value_of(first))
        await write(second, b"2")
        first = await opener.open(tmp_path / "a")
        assert value_of(first) == b"1"
        await first.close()
        await second.close()
        refuses(Unavailable, lambda: value_of(second))
        # nobody holds the store any more
        store = Store(tmp_path / "common", create=False)
        await store.close()

    asyncio.run(steps())


def test_cancelled_close_goes_on(tmp_path: Path) -> None:
    async def steps() -> None:
        database = await opener_in(tmp_path).open(tmp_path / "a")
        closing = asyncio.ensure_future(database.close())
        await asyncio.sleep(0)
        closing.cancel()
        await database.close()
        assert closing.cancelled()
        await Store(tmp_path / "common", create=False).close()

    asyncio.run(steps())


def test_database_that_is_opened_while_the_last_one_closes_is_served(tmp_path: Path) -> None:
    async def steps() -> None:
        opener = opener_in(tmp_path)
        for _ in range(20):
            first = await opener.open(tmp_path / "a")
            _, second = await asyncio.gather(first.close(), opener.open(tmp_path / "b"))
            await write(second, b"2")
            await second.close()

    asyncio.run(steps())


def test_database_in_a_folder_of_its_own_is_taken_over_once(tmp_path: Path) -> None:
    async def steps() -> None:
        old = LmdbDatabase.opened(tmp_path / "a" / "metadata")
        await write(old, b"kept")
        await old.update(lambda root: root.create_bucket(TOP + b"2").set_sequence(7))
        await old.close()
        (tmp_path / "a" / "beside").write_text("kept")

        opener = opener_in(tmp_path)
        taken = await opener.open(tmp_path / "a" / "metadata")
        assert value_of(taken) == b"kept"
        with taken.view() as root:
            second = root.bucket(TOP + b"2")
            assert second is not None
            assert second.sequence() == 7
        await write(taken, b"new")
        await taken.close()
        again = await opener.open(tmp_path / "a" / "metadata")
        assert value_of(again) == b"new"
        await again.close()

    asyncio.run(steps())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["beside"]


def test_taking_over_that_was_killed_is_finished(tmp_path: Path) -> None:
    script = f"""
import asyncio, os
from pathlib import Path
import structlog
from moored.plugins.metadata.lmdb import opener
opener.remove_store = lambda folder: os._exit(9)
root = Path({str(tmp_path)!r})
asyncio.run(opener.LmdbOpener(structlog.get_logger(), root, root / "common").open(root / "a"))
"""

    async def steps() -> None:
        old = LmdbDatabase.opened(tmp_path / "a")
        await write(old, b"kept")
        await old.close()
        killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], check=False)
        assert killed.returncode == 9
        assert (tmp_path / "a" / "environment").is_dir()

        taken = await opener_in(tmp_path).open(tmp_path / "a")
        assert value_of(taken) == b"kept"
        assert not (tmp_path / "a").exists()
        await taken.close()

    asyncio.run(steps())


def test_database_that_is_damaged_in_its_folder_is_left_there(tmp_path: Path) -> None:
    async def steps() -> None:
        old = LmdbDatabase.opened(tmp_path / "a")
        await old.close()
        os.truncate(tmp_path / "a" / "environment" / "data.mdb", 0)
        opener = opener_in(tmp_path)
        await fails_with(DataLoss, opener.open(tmp_path / "a"))
        assert (tmp_path / "a" / "environment" / "data.mdb").stat().st_size == 0
        # nothing is held, and nothing stands for it
        store = Store(tmp_path / "common", create=False)
        assert parts_of(store) == []
        await store.close()

    asyncio.run(steps())


def test_lost_database_of_a_store_is_data_loss(tmp_path: Path) -> None:
    async def steps() -> None:
        store = Store(tmp_path / "common")
        part = Part(store, "a")
        refuses(DataLoss, lambda: value_of(part))
        await fails_with(DataLoss, write(part, b"1"), "metadata store is damaged: it has lost database 'a'")
        await store.close()

    asyncio.run(steps())


def test_backup_of_all_has_the_store_once(tmp_path: Path) -> None:
    async def steps() -> bytes:
        opener = opener_in(tmp_path)
        opened = [await opener.open(tmp_path / name) for name in ("a", "b")]
        with await opener.backup() as file:
            data = file.read()
        for one in opened:
            await one.close()
        return data

    data = asyncio.run(steps())
    assert data.count(b"common/environment/data.mdb") == 2, "its header, and its line in the manifest"
