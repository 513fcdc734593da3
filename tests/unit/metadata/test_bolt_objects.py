"""The object database: its schema to the byte, its start, and what happens around a write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from harness import on_loop, running
from moored.kernel import records
from moored.kernel.conformance.containers import SPEC, container
from moored.kernel.conformance.images import image, target
from moored.kernel.conformance.metadata import contents
from moored.kernel.conformance.objects import DIGEST
from moored.kernel.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from moored.kernel.namespaces import bind
from moored.kernel.payloads import Packed, Payload
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.leases import Resource
from moored.kernel.ports.metadata import Bucket
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.containers import NamespacedContainers
from moored.plugins.metadata.bolt.images import NamespacedImages
from moored.plugins.metadata.bolt.leases import NamespacedLeases, add_to_lease, remove_from_lease
from moored.plugins.metadata.bolt.namespaces import Namespaces, kinds_left
from moored.plugins.metadata.bolt.writes import Writes, look
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from unit.metadata.memory import MemoryDatabase
from unit.metadata.objects import BOLT, STORES, opened


class Recorder:
    """Stands for the exchange and the listener of changes, and keeps what they are told in one list."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[object] = []
        self._error = error

    async def publish(self, topic: str, event: Payload | Packed | None, namespace: str) -> None:
        self.told.append((topic, namespace))
        if self._error is not None:
            raise self._error

    def changed(self, deleted: bool) -> None:
        self.told.append(deleted)


def store(kind: Callable[..., Any], db: Any, recorder: Recorder | None = None) -> Any:
    recorder = recorder or Recorder()
    return kind(database=db, exchange=recorder, changed=recorder.changed)


def flat(bucket: Bucket, path: str = "") -> dict[str, bytes]:
    """Every value of a bucket by its path; an empty bucket stands as a path that ends in a slash."""
    found: dict[str, bytes] = {}
    for key, value in bucket.items():
        below, here = bucket.bucket(key), f"{path}{key.decode()}"
        found |= {here: value or b""} if below is None else flat(below, f"{here}|") or {f"{here}|": b""}
    return found


@on_loop
async def test_records_lie_where_containerd_has_them() -> None:
    db = MemoryDatabase()
    await db.update(schema.prepare)
    with bind("one"):
        await store(NamespacedImages, db).create(image("i/1", target(size=1000, x="1"), k="v"), now=0)
        made = await store(NamespacedContainers, db).create(container())
        leases = store(NamespacedLeases, db)
        lease = await leases.create("l", {"k": "v"})
        await leases.add("l", Resource("snapshots/native", "s"))
        await leases.add("l", Resource("content", DIGEST))
    await store(Namespaces, db).update("one", {"tier": "test"})

    spec = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=SPEC.value)
    now, then = records.encode_time(0), records.encode_time(made.created_at)
    with db.view() as root:
        assert flat(root) == {
            "v1|version": b"\x08",
            "v1|one|labels|tier": b"test",
            "v1|one|images|i/1|createdat": now,
            "v1|one|images|i/1|updatedat": now,
            "v1|one|images|i/1|labels|k": b"v",
            "v1|one|images|i/1|annotations|x": b"1",
            "v1|one|images|i/1|target|digest": DIGEST.encode(),
            "v1|one|images|i/1|target|mediatype": b"application/x",
            "v1|one|images|i/1|target|size": b"\xd0\x0f",
            "v1|one|containers|c1|createdat": then,
            "v1|one|containers|c1|updatedat": then,
            "v1|one|containers|c1|spec": spec.SerializeToString(),
            "v1|one|containers|c1|image": b"docker.io/library/one:1",
            "v1|one|containers|c1|snapshotter": b"overlayfs",
            "v1|one|containers|c1|snapshotKey": b"key/with blanks",
            "v1|one|containers|c1|sandboxid": b"s1",
            "v1|one|containers|c1|runtime|name": b"io.containerd.runc.v2",
            "v1|one|containers|c1|runtime|options": b"\n\x1acontainerd.runc.v1.Options\x12\x02\x08\x01",
            "v1|one|containers|c1|extensions|empty": b"",
            "v1|one|containers|c1|extensions|x": b"\n\texample.X\x12\x02\xff\x00",
            "v1|one|containers|c1|labels|k": b"1",
            "v1|one|leases|l|createdat": records.encode_time(lease.created_at),
            "v1|one|leases|l|labels|k": b"v",
            f"v1|one|leases|l|content|{DIGEST}": b"",
            "v1|one|leases|l|snapshots|native|s": b"",
        }


@on_loop
async def test_preparing_twice_changes_nothing() -> None:
    db = MemoryDatabase()
    await db.update(schema.prepare)
    await db.update(schema.prepare)

    assert contents(db) == {b"v1": (0, {b"version": b"\x08"})}


@on_loop
async def test_damaged_records_are_told_and_foreign_values_passed_over() -> None:
    db = MemoryDatabase()

    def make(root: Bucket) -> None:
        images = schema.made_object_bucket(root, "one", "images")
        images.put(b"a value", b"")
        images.create_bucket(b"no target")
        containers = schema.made_object_bucket(root, "one", "containers")
        containers.put(b"a value", b"")
        containers.create_bucket(b"empty")

    await db.update(make)
    with bind("one"):
        with pytest.raises(DataLoss, match='image "no target" has no target'):
            await store(NamespacedImages, db).list()
        (found,) = await store(NamespacedContainers, db).list()
    assert (found.id, found.runtime, found.spec, found.created_at) == ("empty", "", None, records.ZERO_TIME)


@on_loop
async def test_every_kind_that_is_left_keeps_a_namespace() -> None:
    db = MemoryDatabase()
    paths = ("snapshots/z", "snapshots/a", "snapshots/none", "containers", "content/blob", "content/ingests", "images")

    def make(root: Bucket) -> None:
        for path in paths:
            bucket = schema.made_object_bucket(root, "one", *path.split("/"))
            if path != "snapshots/none":
                bucket.create_bucket(b"x")
        schema.made_object_bucket(root, "one", "leases").create_bucket(b"l")

    await db.update(make)
    with db.view() as root:
        record = schema.namespace_bucket(root, "one")
        assert record is not None
        assert kinds_left(record) == [
            "images",
            "blobs",
            "containers",
            'snapshots on "a" snapshotter',
            'snapshots on "z" snapshotter',
        ]


@on_loop
async def test_lease_functions_follow_the_lease_of_the_call() -> None:
    db = MemoryDatabase()

    def change(root: Bucket) -> None:
        add_to_lease(root, "one", "", "content", DIGEST)
        with pytest.raises(NotFound, match=r"^lease does not exist$"):
            add_to_lease(root, "one", "l", "content", DIGEST)
        remove_from_lease(root, "one", "l", "content", DIGEST)
        schema.made_object_bucket(root, "one", "leases", "l")
        add_to_lease(root, "one", "l", "snapshots/a", "k/with/slashes")
        add_to_lease(root, "one", "l", "snapshots/a", "other")
        remove_from_lease(root, "one", "l", "snapshots/a", "other")
        remove_from_lease(root, "one", "l", "images", "other")

    await db.update(change)
    with bind("one"):
        assert await store(NamespacedLeases, db).resources("l") == [Resource("snapshots/a", "k/with/slashes")]


# --- around a write ---------------------------------------------------------------------------------------------------


@on_loop
async def test_change_is_durable_before_anybody_is_told() -> None:
    db, recorder = MemoryDatabase(), Recorder()
    images = store(NamespacedImages, db, recorder)
    with bind("one"):
        await images.create(image("i"))
        with pytest.raises(NotFound):
            await images.delete("other")
        await images.delete("i")

    assert recorder.told == [False, ("/images/create", "one"), True, ("/images/delete", "one")]


@on_loop
async def test_error_of_the_exchange_reaches_the_caller_of_a_write_that_is_done() -> None:
    db = MemoryDatabase()
    images = store(NamespacedImages, db, Recorder(Unavailable("exchange has stopped")))
    with bind("one"):
        with pytest.raises(Unavailable, match="exchange has stopped"):
            await images.create(image("i"))
        assert [one.name for one in await images.list()] == ["i"]


@on_loop
async def test_cancelled_write_is_told_all_the_same(tmp_path: Path) -> None:
    db, recorder = LmdbDatabase.opened(tmp_path / "db"), Recorder()
    writes = Writes(database=db, exchange=recorder, changed=recorder.changed)  # type: ignore[arg-type]
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def change(root: Bucket) -> None:
        loop.call_soon_threadsafe(begun.set)
        root.create_bucket(b"b")

    try:
        event = image("i")
        task = asyncio.ensure_future(writes.run(change, lambda _: ("/a", event, "one")))  # type: ignore[arg-type, return-value]
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert recorder.told == [False, ("/a", "one")]
    finally:
        await db.close()


@on_loop
async def test_cancelled_caller_goes_on_when_its_work_has_ended() -> None:
    release, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await release.wait()
        ended.set()
        raise InvalidArgument("nobody sees this")

    task = asyncio.ensure_future(to_the_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@on_loop
async def test_look_runs_beside_the_loop(tmp_path: Path) -> None:
    db = LmdbDatabase.opened(tmp_path / "db")
    loop = asyncio.get_running_loop()

    def read(_: Bucket) -> bool:
        # Would wait for ever on the loop's own thread.
        return asyncio.run_coroutine_threadsafe(asyncio.sleep(0, True), loop).result(20)

    try:
        assert await look(db, read)
    finally:
        await db.close()


# --- the plugin -------------------------------------------------------------------------------------------------------


@on_loop
async def test_listeners_are_told_of_every_write_until_they_leave(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        told: list[bool] = []

        def broken(_: bool) -> None:
            raise KeyError("broken")

        parts.objects.on_change(broken)
        end = parts.objects.on_change(told.append)
        with bind("one"):
            await parts.objects.images.create(image("i"))
            await parts.objects.leases.create("l", {})
            await parts.objects.containers.create(container())
            assert told == [False] * 3
            await parts.objects.images.delete("i")
            await parts.objects.leases.remove("l", Resource("images", "i"))
            await parts.objects.leases.delete("l")
            await parts.objects.containers.delete("c1")
            assert told[3:] == [True] * 4
            end()
            end()
            await parts.objects.images.create(image("i"))
        assert len(told) == 7


@on_loop
async def test_unknown_snapshotter_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path, "io.containerd.snapshotter.v1.native") as parts:
        assert list(parts.objects.snapshotters()) == ["native"]
        assert parts.objects.snapshotter("native") is parts.objects.snapshotters()["native"]
        with pytest.raises(InvalidArgument, match=r"^snapshotter argument missing$"):
            parts.objects.snapshotter("")
        with pytest.raises(InvalidArgument, match=r"^snapshotter not loaded: zfs$"):
            parts.objects.snapshotter("zfs")


@on_loop
async def test_objects_outlive_the_daemon(tmp_path: Path) -> None:
    with bind("one"):
        async with opened(tmp_path) as parts:
            made = await parts.objects.images.create(image("i", k="v"))
            assert parts.kernel.record(BOLT).exports == {"policy": "shared", "root": str(tmp_path / "root" / BOLT)}
        async with opened(tmp_path) as parts:
            assert await parts.objects.images.list() == [made]


@on_loop
async def test_collection_spares_what_has_a_name(tmp_path: Path) -> None:
    with bind("one"):
        async with opened(tmp_path) as parts:
            await parts.objects.images.create(image("i"))
            await parts.objects.leases.create("l", {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"})
            await parts.objects.collect()
            assert [one.name for one in await parts.objects.images.list()] == ["i"]
            assert await parts.objects.leases.list() == []


@on_loop
async def test_settings_of_containerd_are_taken(tmp_path: Path) -> None:
    config = {"content_sharing_policy": "isolated", "no_sync": True}
    async with opened(tmp_path, **{BOLT: config}) as parts:
        assert parts.kernel.record(BOLT).outcome is Outcome.OK
        assert parts.kernel.record(BOLT).exports["policy"] == "isolated"


@on_loop
async def test_store_of_another_version_fails_the_plugin(tmp_path: Path) -> None:
    folder = tmp_path / "root" / BOLT
    folder.parent.mkdir()
    db = LmdbDatabase.opened(folder)
    await db.update(lambda root: root.create_bucket(b"v1").put(b"version", records.encode_zigzag(5)))
    await db.close()

    async with running(tmp_path, *STORES) as kernel:
        record = kernel.record(BOLT)
    assert record.outcome is Outcome.FAILED
    assert "metadata has schema version '5', wanted '4'" in record.reason
