"""Checkpoints on their way into the content store and back, and what is left of them on the disk: nothing."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from harness import fails, on_loop
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.types.descriptor_pb2 import Descriptor
from moored.api.types.runc.options import oci_pb2
from moored.kernel.conformance import fails_with
from moored.kernel.errors import FailedPrecondition, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.ports.content import read_blob
from moored.kernel.ports.images import Descriptor as Target
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import CreateTask, Status
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from unit.tasks.fake import fake_runtime
from unit.tasks.test_service import call, create
from unit.tasks.world import DIFFER, TASKS_SERVICE, Opened, opened, served, typed

CRIU = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
needs_root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]


def root_only(test: Any) -> Any:
    for mark in needs_root:
        test = mark(test)
    return test


def left(world: Opened) -> list[str]:
    """Files below the plugin's own state."""
    state = world.kernel.daemon.state / TASKS_SERVICE
    return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


async def stored(world: Opened, descriptor: Any) -> bytes:
    with bind("one"):
        return await read_blob(world.objects.content, descriptor.digest, 1 << 20)


@root_only
@on_loop
async def test_checkpoint_is_stored_as_tar_and_spec(tmp_path: Path) -> None:
    async with served(tmp_path, DIFFER) as (world, stub):
        await create(world, stub)
        with bind("one"):
            world.runtime.get("c1").checkpoints = {"inventory.img": b"criu", "pages-1.img": b"x" * 100_000}
            container = await world.objects.containers.get("c1")
        image, config = (await call(stub, "Checkpoint", pb.CheckpointTaskRequest(container_id="c1"))).descriptors
        assert (image.media_type, config.media_type) == (CRIU, CONFIG)
        data = await stored(world, image)
        assert image.size == len(data)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = {one.name: archive.extractfile(one).read() for one in archive if one.isreg()}  # type: ignore[union-attr]
        assert files == {"inventory.img": b"criu", "pages-1.img": b"x" * 100_000}
        spec = AnyMessage.FromString(await stored(world, config))
        assert container.spec == typed(spec.type_url, spec.value)
        assert left(world) == []
        # The same again is no error.
        again = (await call(stub, "Checkpoint", pb.CheckpointTaskRequest(container_id="c1"))).descriptors
        assert again[1] == config


@on_loop
async def test_checkpoint_to_a_folder_stores_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "criu"
    folder.mkdir()
    options = oci_pb2.CheckpointOptions(image_path=str(folder), exit=True)
    packed = AnyMessage(type_url="containerd.runc.v1.CheckpointOptions", value=options.SerializeToString())
    async with served(tmp_path) as (world, stub):
        await create(world, stub)
        request = pb.CheckpointTaskRequest(container_id="c1", options=packed)
        assert not (await call(stub, "Checkpoint", request)).descriptors
        assert (folder / "inventory.img").read_bytes() == b"criu"
        wanted = "no differ is running, checkpoints in the content store need one: failed precondition"
        request = pb.CheckpointTaskRequest(container_id="c1")
        assert await fails(call(stub, "Checkpoint", request)) == ("FAILED_PRECONDITION", wanted)


@root_only
@on_loop
async def test_failed_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, DIFFER) as (world, stub):
        await create(world, stub)
        with bind("one"):
            world.runtime.get("c1").fault = Unknown("criu failed")
        request = pb.CheckpointTaskRequest(container_id="c1")
        assert await fails(call(stub, "Checkpoint", request)) == ("UNKNOWN", "criu failed")
        assert left(world) == []


async def checkpointed(world: Opened) -> Target:
    """A stored checkpoint."""
    await world.container("source")
    with bind("one"):
        await world.tasks.create(CreateTask(container_id="source"))
        image, _ = await world.tasks.checkpoint("source", None)
        await world.tasks.delete("source")
    return image


@root_only
@on_loop
async def test_task_is_restored_from_content_until_it_has_started(tmp_path: Path) -> None:
    async with opened(tmp_path, DIFFER) as world:
        image = await checkpointed(world)
        await world.container("c1")
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1", checkpoint=image))
            folder = Path(world.runtime.made[-1].checkpoint)
            assert (folder / "inventory.img").read_bytes() == b"criu"
            await world.tasks.start("c1")
        assert left(world) == []


@root_only
@on_loop
async def test_what_was_unpacked_goes_with_the_task_or_its_failed_create(tmp_path: Path) -> None:
    async with opened(tmp_path, DIFFER) as world:
        image = await checkpointed(world)
        await world.container("c1")
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1", checkpoint=image))
            assert left(world) == ["restore/one/c1/inventory.img"]
            await world.tasks.delete("c1")
            assert left(world) == []
            world.runtime.fault = Unknown("no")
            await fails_with(Unknown, world.tasks.create(CreateTask(container_id="c1", checkpoint=image)))
        assert left(world) == []


@root_only
@on_loop
async def test_missing_checkpoint_is_told_as_containerd_does(tmp_path: Path) -> None:
    async with served(tmp_path, DIFFER) as (world, stub):
        await world.container("c1")
        for digest in ("sha256:" + "0" * 64, "zz"):
            checkpoint = Descriptor(media_type=CRIU, digest=digest, size=1)
            request = pb.CreateTaskRequest(container_id="c1", checkpoint=checkpoint)
            wanted = ("UNKNOWN", f"content digest {digest}: not found")
            assert await fails(call(stub, "Create", request)) == wanted
        assert left(world) == []
        assert world.runtime.made == []


@on_loop
async def test_folder_to_restore_from_may_be_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.container("c1")
        given = Target(media_type="", digest="", size=0, annotations={"RestoreFromPath": "/criu"})
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1", checkpoint=given))
            assert world.runtime.made[-1].checkpoint == "/criu"
            given = Target(media_type=CRIU, digest="sha256:" + "0" * 64, size=1)
            await world.tasks.kill("c1", 9)
            await world.tasks.wait("c1")
            await world.tasks.delete("c1")
            await fails_with(FailedPrecondition, world.tasks.create(CreateTask(container_id="c1", checkpoint=given)))


@root_only
@on_loop
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "compressed"])
async def test_task_of_a_folder_gets_the_files_beside_it_and_runs(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    image, root = tmp_path / "saved/checkpoint", tmp_path / "rootfs"
    for folder in (image, root):
        folder.mkdir(parents=True)
    (root / "gone").touch()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (("etc/changed", b"hello"), (".wh.gone", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (image.parent / "rootfs-diff.tar").write_bytes(compress(out.getvalue()))
    given = Target(media_type="", digest="", size=0, annotations={"RestoreFromPath": str(image)})
    rootfs = [Mount(type="bind", source=str(root), options=("rbind", "rw"))]
    async with opened(tmp_path, DIFFER) as world:
        await world.container("c1")
        with bind("one"):
            pid = await world.tasks.create(CreateTask(container_id="c1", rootfs=rootfs, checkpoint=given))
            state = await world.tasks.get("c1")
            assert (state.pid, state.status) == (pid, Status.RUNNING)
            assert (root / "etc/changed").read_bytes() == b"hello"
            assert not (root / "gone").exists()
            assert await world.objects.leases.list() == []
            await world.objects.collect()
            assert [one async for one in world.objects.content.walk()] == []


@on_loop
async def test_start_removes_what_no_living_task_is_restored_from(tmp_path: Path) -> None:
    async with fake_runtime(nobody()) as runtime:
        async with opened(tmp_path, runtime=runtime) as world:
            await world.container("living")
            with bind("one"):
                await world.tasks.create(CreateTask(container_id="living"))
        state = tmp_path / "state" / TASKS_SERVICE
        for name in ("dump/tmp1", "restore/one/living", "restore/one/gone", "restore/two/living"):
            (state / name).mkdir(parents=True)
            (state / name / "a.img").touch()
        async with opened(tmp_path, runtime=runtime) as world:
            assert left(world) == ["restore/one/living/a.img"]
        runtime.exchange = nobody()


def nobody() -> LocalExchange:
    """An exchange of its own."""
    return LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
