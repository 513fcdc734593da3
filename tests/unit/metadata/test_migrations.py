"""Metadata of older schema versions, from bbolt files as containerd left them, is brought to the present one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.conformance.metadata import contents
from moored.kernel.errors import DataLoss, FailedPrecondition
from moored.kernel.ports.metadata import Bucket
from moored.plugins.metadata.bbolt.copy import import_file
from moored.plugins.metadata.bbolt.tree import walk
from moored.plugins.metadata.bbolt.write import write_file
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from unit.metadata.memory import MemoryDatabase

Given = dict[bytes, "bytes | Given"]


def put(bucket: Bucket, given: Given) -> None:
    for name, value in given.items():
        if isinstance(value, bytes):
            bucket.put(name, value)
        else:
            put(bucket.create_bucket(name), value)


async def migrated(folder: Path, given: Given) -> dict[bytes, object]:
    """Write such a tree as a bbolt file, import that, open it, and give what is in it then."""
    model = MemoryDatabase()
    await model.update(lambda root: put(root, given))
    with model.view() as root:
        write_file(folder / "meta.db", walk(root))
    database = LmdbDatabase.opened(folder / "db")
    try:
        await import_file(folder / "meta.db", database)
        await database.update(schema.prepare)
        await database.update(schema.prepare)
        return contents(database)
    finally:
        await database.close()


def plain(found: object) -> object:
    """Leave the sequence numbers out."""
    if isinstance(found, tuple):
        return plain(found[1])
    return {name: plain(value) for name, value in found.items()} if isinstance(found, dict) else found


SNAPSHOTS: Given = {
    b"base": {b"name": b"ns/1/base"},
    b"top": {b"name": b"ns/2/top", b"parent": b"base"},
    b"other": {b"name": b"ns/3/other", b"parent": b"base"},
    b"orphan": {b"name": b"ns/4/orphan", b"parent": b"gone"},
}


@on_loop
async def test_parents_learn_their_children(tmp_path: Path) -> None:
    found = await migrated(tmp_path, {b"v1": {b"ns": {b"snapshots": {b"native": SNAPSHOTS}}}})

    linked = {**SNAPSHOTS, b"base": {b"name": b"ns/1/base", b"children": {b"other": b"", b"top": b""}}}
    assert plain(found) == {b"v1": {b"version": b"\x08", b"ns": {b"snapshots": {b"native": linked}}}}


@on_loop
async def test_refs_become_ingests(tmp_path: Path) -> None:
    old: Given = {b"content": {b"ingest": {b"r1": b"ns/1/r1", b"r2": b"ns/2/r2"}, b"blob": {}}}

    found = await migrated(tmp_path, {b"v1": {b"version": b"\x02", b"ns": old}})

    ingests = {b"r1": {b"ref": b"ns/1/r1"}, b"r2": {b"ref": b"ns/2/r2"}}
    assert plain(found) == {b"v1": {b"version": b"\x08", b"ns": {b"content": {b"blob": {}, b"ingests": ingests}}}}


@on_loop
async def test_sandboxes_move_into_their_namespace(tmp_path: Path) -> None:
    sandbox: Given = {b"createdat": b"then", b"runtime": {b"name": b"runc"}, b"extensions": {b"x": b"y"}}
    given: Given = {
        b"v1": {b"version": b"\x06", b"ns": {b"images": {}}},
        b"ns": {b"sandboxes": {b"s1": sandbox, b"s2": {}, b"stray": b"value"}},
        b"new": {b"sandboxes": {b"s3": {b"spec": b"z"}}},
        b"empty": {},
    }

    found = await migrated(tmp_path, given)

    assert plain(found) == {
        b"v1": {
            b"version": b"\x08",
            b"ns": {b"images": {}, b"sandboxes": {b"s1": sandbox, b"s2": {}}},
            b"new": {b"sandboxes": {b"s3": {b"spec": b"z"}}},
        }
    }


@on_loop
async def test_a_step_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    found = await migrated(tmp_path, {b"v1": {b"version": b"\x02", b"ns": {b"snapshots": {b"native": SNAPSHOTS}}}})

    assert plain(found) == {b"v1": {b"version": b"\x08", b"ns": {b"snapshots": {b"native": SNAPSHOTS}}}}


@on_loop
async def test_private_buckets_beside_the_present_version_stay(tmp_path: Path) -> None:
    given: Given = {b"v1": {b"version": b"\x08"}, b"private": {b"sandboxes": {b"s": {}}}}

    assert plain(await migrated(tmp_path, given)) == given


@on_loop
async def test_deeper_sandboxes_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    given: Given = {b"v1": {b"version": b"\x06"}, b"ns": {b"sandboxes": {b"s": {b"a": {b"b": {b"c": {}}}}}}}
    model = MemoryDatabase()
    await model.update(lambda root: put(root, given))

    with pytest.raises(DataLoss, match="nested too deeply"):
        await model.update(schema.prepare)

    assert plain(contents(model)) == given


@on_loop
async def test_newer_versions_are_refused() -> None:
    model = MemoryDatabase()
    await model.update(lambda root: put(root, {b"v1": {b"version": b"\x0a"}}))

    with pytest.raises(FailedPrecondition, match="schema version '5', wanted '4' or less"):
        await model.update(schema.prepare)
