"""The LMDB store and the dictionary model answer every sequence of operations alike."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from moored.kernel.conformance.metadata import contents
from moored.kernel.errors import MooredError
from moored.kernel.ports.metadata import Bucket, Cursor, Database
from moored.plugins.metadata.lmdb import small
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from moored.plugins.metadata.lmdb.layout import MAX_LMDB_KEY, PIECE
from unit.metadata.memory import MemoryDatabase

# Few names that share long beginnings and end around the edges of pieces, so that operations meet on them.
STEMS = (b"", b"a" * (PIECE - 1), b"a" * PIECE, b"a" * 2 * PIECE, b"a" * (2 * PIECE + 1), b"b" * PIECE)
stems = st.integers(0, len(STEMS) - 1).map(STEMS.__getitem__)
names = st.builds(bytes.__add__, stems, st.sampled_from([b"", b"\0", b"a", b"b", b"\xff", b"\0a"]))
targets = st.one_of(names, st.binary(max_size=3))
values = st.one_of(st.binary(max_size=9), st.integers(4999, 5000).map(bytes))
paths = st.lists(st.sampled_from([1, PIECE + 1]).map(lambda length: b"a" * length), max_size=3)

changes = st.one_of(
    st.tuples(st.just("put"), names, values),
    st.tuples(st.just("put"), names, values),
    st.tuples(st.sampled_from(["get", "delete", "bucket", "delete_bucket"]), targets),
    st.tuples(st.sampled_from(["create_bucket", "create_bucket_if_missing"]), names),
    st.tuples(st.sampled_from(["sequence", "next_sequence"])),
    st.tuples(st.just("set_sequence"), st.integers(-1, 2**64)),
    st.tuples(st.just("items"), targets),
    st.tuples(st.sampled_from(["tree", "trees"])),
)
moves = st.one_of(
    st.tuples(st.sampled_from(["first", "last", "next", "prev", "next", "prev", "delete"])),
    st.tuples(st.just("seek"), targets),
)


class Undone(Exception):
    """Ends an update so that it is rolled back."""


def outcome(target: Bucket | Cursor, operation: tuple[Any, ...]) -> object:
    """Do one operation and give what a caller can tell about it."""
    try:
        result = getattr(target, operation[0])(*operation[1:])
    except MooredError as error:
        return type(error), (error.text if " " in error.text and "root" not in error.text else None)
    if operation[0] in ("items", "trees"):
        return copy.deepcopy(list(result))
    if operation[0] == "tree":
        return copy.deepcopy(result)
    return result is not None if operation[0] in ("bucket", "create_bucket", "create_bucket_if_missing") else result


def apart_from_wording(found: object) -> object:
    """Leave out texts that are no part of the port."""
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], type):
        exact = {
            "key required",
            "bucket name required",
            "incompatible value",
            "bucket not found",
            "bucket already exists",
        }
        return found[0], found[1] if found[1] in exact else None
    return found


def walk_down(root: Bucket, path: list[bytes]) -> Bucket:
    bucket = root.create_bucket_if_missing(b"v1")
    for name in path:
        below = bucket.bucket(name)
        if below is None:
            return bucket
        bucket = below
    return bucket


class Stores(RuleBasedStateMachine):
    """Runs both side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.model = MemoryDatabase()
        self.real = self.opened()
        self.limits = pytest.MonkeyPatch()

    @initialize(limits=st.sampled_from([(32 << 10, 16, 64), (2000, 2, 3), (100, 16, 64), (6000, 3, 64)]))
    def limit_small_buckets(self, limits: tuple[int, int, int]) -> None:
        for name, limit in zip(("MAX_BYTES", "MAX_ENTRIES", "MAX_BELOW"), limits, strict=True):
            self.limits.setattr(small, name, limit)

    def opened(self) -> LmdbDatabase:
        return LmdbDatabase.opened(Path(self.folder.name) / "db", limit=64 << 20)

    def both(self, change: Any) -> None:
        async def on(db: Database) -> object:
            try:
                return await db.update(change)
            except Undone as error:
                return error.args

        answers = [self.runner.run(on(db)) for db in (self.model, self.real)]
        assert answers[0] == answers[1]

    @rule(path=paths, script=st.lists(changes, min_size=1, max_size=12), undo=st.booleans())
    def update(self, path: list[bytes], script: list[Any], undo: bool) -> None:
        def change(root: Bucket) -> list[object]:
            bucket = walk_down(root, path)
            found = [apart_from_wording(outcome(bucket, operation)) for operation in script]
            if undo:
                raise Undone(found)
            return found

        self.both(change)

    @rule(path=paths, script=st.lists(st.one_of(moves, changes), min_size=1, max_size=20))
    def walk(self, path: list[bytes], script: list[Any]) -> None:
        def change(root: Bucket) -> list[object]:
            bucket = walk_down(root, path)
            cursor = bucket.cursor()
            on_cursor = {"first", "last", "next", "prev", "seek"}
            return [
                apart_from_wording(
                    outcome(
                        cursor
                        if operation[0] in on_cursor or (len(operation) == 1 and operation[0] == "delete")
                        else bucket,
                        operation,
                    )
                )
                for operation in script
            ]

        self.both(change)

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.real.close())
        self.real = self.opened()

    @invariant()
    def trees_are_equal(self) -> None:
        assert contents(self.real) == contents(self.model)

    def teardown(self) -> None:
        try:
            self.runner.run(self.emptied())
        finally:
            self.limits.undo()
            self.runner.run(self.real.close())
            self.runner.close()
            self.folder.cleanup()

    async def emptied(self) -> None:
        """Deleting all buckets leaves only the records of the store itself, so nothing was leaked on the way."""

        def change(root: Bucket) -> None:
            root.set_sequence(0)
            for name, _ in root.items():  # noqa: PERF102 - no dict
                root.delete_bucket(name)

        await self.real.update(change)
        await self.real.close()
        with lmdb.open(f"{self.folder.name}/db/environment", readonly=True, lock=False) as env, env.begin() as txn:
            left = [key for key, _ in txn.cursor()]
        assert sorted(left) in ([bytes(8) + b"format"], [bytes(8) + b"format", bytes(8) + b"next"])
        assert PIECE + 9 == MAX_LMDB_KEY


Stores.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStores = Stores.TestCase
