"""Sandbox records: where they lie, what they keep from collection, and that they go with their namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.conformance.sandboxes import sandbox
from moored.kernel.errors import NotFound, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.ports.metadata import Bucket
from moored.kernel.ports.sandboxes import Sandbox
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.sandboxes import NamespacedSandboxes
from unit.metadata.memory import MemoryDatabase
from unit.metadata.objects import opened
from unit.metadata.test_bolt_objects import flat


def store(db: MemoryDatabase, changes: list[bool] | None = None) -> NamespacedSandboxes:
    told = [] if changes is None else changes
    return NamespacedSandboxes(database=db, changed=told.append)


@on_loop
async def test_records_lie_where_containerd_has_them() -> None:
    db = MemoryDatabase()
    await db.update(schema.prepare)
    with bind("one"):
        made = await store(db).create(sandbox())
        await store(db).create(Sandbox(id="bare"))
    assert made.created_at == made.updated_at

    with db.view() as root:
        found = flat(root)

    times = {f"v1|one|sandboxes|{id_}|{name}" for id_ in ("s1", "bare") for name in ("createdat", "updatedat")}
    assert {key: value for key, value in found.items() if key not in times} == {
        "v1|version": b"\x08",
        "v1|one|sandboxes|s1|sandboxer": b"shim",
        "v1|one|sandboxes|s1|spec": b"\x0a\x36types.containerd.io/opencontainers/runtime-spec/1/Spec\x12\x02{}",
        "v1|one|sandboxes|s1|runtime|name": b"io.containerd.runc.v2",
        "v1|one|sandboxes|s1|runtime|options": b"\x0a\x1acontainerd.runc.v1.Options\x12\x02\x08\x01",
        "v1|one|sandboxes|s1|labels|k": b"1",
        "v1|one|sandboxes|s1|extensions|x": b"\x0a\x09example.X\x12\x02\xff\x00",
        "v1|one|sandboxes|s1|extensions|empty": b"",
        "v1|one|sandboxes|bare|sandboxer": b"",
        "v1|one|sandboxes|bare|runtime|name": b"",
    }


@on_loop
async def test_record_without_a_runtime_is_told() -> None:
    db = MemoryDatabase()

    def change(root: Bucket) -> None:
        schema.made_object_bucket(root, "one", schema.SANDBOXES, "s1").put(b"sandboxer", b"shim")

    await db.update(change)
    with bind("one"):
        for call in (store(db).get("s1"), store(db).list()):
            with pytest.raises(Unknown, match="no runtime bucket"):
                await call


@on_loop
async def test_deletion_calls_for_no_collection() -> None:
    db, changes = MemoryDatabase(), list[bool]()
    with bind("one"):
        await store(db, changes).create(sandbox())
        await store(db, changes).delete("s1")
    assert changes == [False, False]


@on_loop
async def test_sandboxes_go_with_their_namespace(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        with bind("one"):
            await parts.objects.sandboxes.create(sandbox())
        await parts.objects.namespaces.delete("one")
        with bind("one"), pytest.raises(NotFound):
            await parts.objects.sandboxes.get("s1")


@on_loop
async def test_labels_keep_images_from_collection(tmp_path: Path) -> None:
    from moored.kernel.conformance.images import image

    async with opened(tmp_path) as parts:
        with bind("one"):
            expired = {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}
            for name in ("kept", "gone"):
                await parts.objects.images.create(image(name, **expired))
            await parts.objects.sandboxes.create(sandbox(labels={"containerd.io/gc.ref.image": "kept"}))
            await parts.objects.collect()
            assert [one.name for one in await parts.objects.images.list()] == ["kept"]
            await parts.objects.sandboxes.delete("s1")
            await parts.objects.collect()
            assert await parts.objects.images.list() == []
