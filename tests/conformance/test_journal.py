"""A database is no other one while what is written to it is recorded; and what was recorded is what was written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moored.kernel.conformance.metadata import CHECKS, Check
from moored.kernel.ports.metadata import Bucket
from moored.plugins.metadata.bolt.journal import Journal
from moored.plugins.metadata.lmdb.database import LmdbDatabase


class Recording(Journal):
    """Records all the time, from within the first update on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LmdbDatabase.opened(folder / "db", limit=64 << 20))
        self._written = set()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_recording_database(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        db = Recording(tmp_path)
        try:
            await check(db)
        finally:
            await db.close()

    asyncio.run(run())


def test_every_write_is_recorded_with_its_path(tmp_path: Path) -> None:
    def make(root: Bucket) -> None:
        top = root.create_bucket(b"a")
        top.put(b"k", b"v")
        top.get(b"k")
        below = top.create_bucket_if_missing(b"b")
        below.put(b"x", b"1")
        below.put(b"y", b"2")

    def remove(root: Bucket) -> None:
        top = root.bucket(b"a")
        assert top is not None
        found = top.bucket(b"b")
        assert found is not None
        cursor = found.cursor()
        cursor.seek(b"y")
        cursor.delete()
        found.delete(b"x")
        top.delete_bucket(b"b")
        list(top.items())

    async def run() -> None:
        try:
            await db.record()
            await db.update(make)
            assert await db.update_unrecorded(lambda _: db.taken()) == {
                (b"a",),
                (b"a", b"k"),
                (b"a", b"b"),
                (b"a", b"b", b"x"),
                (b"a", b"b", b"y"),
            }
            await db.update(remove)
            assert db.taken() == {(b"a", b"b", b"y"), (b"a", b"b", b"x"), (b"a", b"b")}
            db.stop()
            await db.update(lambda root: root.create_bucket(b"c") and None)
            assert db.taken() == set()
        finally:
            await db.close()

    db = Recording(tmp_path)
    asyncio.run(run())


def test_an_update_is_in_the_view_or_recorded(tmp_path: Path) -> None:
    """Also those that were queued when recording began."""

    async def run() -> None:
        db = Journal(LmdbDatabase.opened(tmp_path / "db", limit=64 << 20))
        try:
            names = [b"%d" % number for number in range(400)]
            writes = [
                asyncio.ensure_future(db.update(lambda root, n=name: root.create_bucket(n) and None))
                for name in names[:200]
            ]
            began = asyncio.ensure_future(db.record())
            writes += [
                asyncio.ensure_future(db.update(lambda root, n=name: root.create_bucket(n) and None))
                for name in names[200:]
            ]
            await began
            with db.view() as root:
                seen = {name for name, _ in root.items()}
            await asyncio.gather(*writes)
            recorded = {path[0] for path in db.taken()}
            assert seen | recorded == set(names)
            assert recorded
            assert seen
        finally:
            await db.close()

    asyncio.run(run())
