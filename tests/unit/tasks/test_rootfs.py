"""Mounts of a task that the mount manager carries out, apart from those that its runtime says to mount itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.conformance import fails_with
from moored.kernel.errors import InvalidArgument, Unavailable, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import CreateTask, RuntimeInfo
from unit.tasks.world import Opened, opened

MANAGER = "io.containerd.mount-manager.v1.bolt"
OTHER = "io.example.other.v1"
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]


def mounts(folder: Path) -> list[Mount]:
    """A folder, and an overlay that wants its path filled in."""
    for name in ("lower", "upper", "work"):
        (folder / name).mkdir(exist_ok=True)
    options = ("lowerdir={{ mount 0 }}", f"upperdir={folder}/upper", f"workdir={folder}/work")
    return [
        Mount(type="bind", source=str(folder / "lower"), options=("rbind", "ro")),
        Mount(type="format/overlay", source="overlay", options=options),
    ]


def mounted(folder: Path) -> list[str]:
    """What is mounted below a folder."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(folder))]


async def lost(world: Opened) -> None:
    """Have the task gone without a word."""
    task = world.runtime.get("c1")
    task.die()
    await task.close()


async def names(world: Opened) -> list[str]:
    """The activations there are."""
    return [one.activation.name for one in await world.objects.activations.list()]


@on_loop
async def test_what_a_shim_cannot_mount_is_mounted_until_the_task_is_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path, MANAGER) as world:
        await world.container("c1")
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1", rootfs=mounts(tmp_path)))
            (place,) = mounted(tmp_path)
            (left,) = world.runtime.made[-1].rootfs
            assert (left.type, left.options[0]) == ("overlay", f"lowerdir={place}")
            (held,) = await world.objects.activations.list()
            assert held.activation.labels == {"containerd.io/gc.bref.container": "c1"}
            await world.objects.collect()  # its container holds it
            assert mounted(tmp_path) == [place]
            await world.tasks.delete("c1")
            assert (mounted(tmp_path), await names(world)) == ([], [])


@on_loop
async def test_task_that_cannot_be_made_leaves_no_mounts(tmp_path: Path) -> None:
    async with opened(tmp_path, MANAGER) as world:
        await world.container("c1")
        with bind("one"):
            world.runtime.fault = Unknown("no luck")
            await fails_with(Unknown, world.tasks.create(CreateTask(container_id="c1", rootfs=mounts(tmp_path))))
            assert (mounted(tmp_path), await names(world)) == ([], [])


@on_loop
async def test_mounts_left_by_an_earlier_task_are_used_again_and_go_with_their_container(tmp_path: Path) -> None:
    async with opened(tmp_path, MANAGER) as world:
        await world.container("c1")
        request = CreateTask(container_id="c1", rootfs=mounts(tmp_path))
        with bind("one"):
            await world.tasks.create(request)
            before = mounted(tmp_path)
            await lost(world)
            await world.tasks.create(request)
            assert mounted(tmp_path) == before
            await lost(world)
            await world.objects.containers.delete("c1")
            await world.objects.collect()
            assert (mounted(tmp_path), await names(world)) == ([], [])


@on_loop
async def test_types_that_a_runtime_mounts_itself_are_left_to_it(tmp_path: Path) -> None:
    async with opened(tmp_path, MANAGER) as world:
        await world.container("c1", runtime=OTHER)
        world.runtime.infos[OTHER] = RuntimeInfo(
            name=OTHER, annotations={"containerd.io/runtime-allow-mounts": "erofs,format/*"}
        )
        wanted = mounts(tmp_path)
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1", rootfs=wanted))
            assert list(world.runtime.made[-1].rootfs) == wanted
            assert mounted(tmp_path) == []


@on_loop
async def test_runtime_that_does_not_tell_has_all_mounted_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path, MANAGER) as world:
        await world.container("c1", runtime=OTHER)
        world.runtime.infos[OTHER] = Unavailable("silent")
        with bind("one"):
            await world.tasks.create(CreateTask(container_id="c1", rootfs=mounts(tmp_path)))
            assert len(mounted(tmp_path)) == 1
            await world.tasks.delete("c1")


@on_loop
async def test_mounts_that_the_manager_refuses_fail_the_create(tmp_path: Path) -> None:
    async with opened(tmp_path, MANAGER) as world:
        await world.container("c1")
        wrong = [Mount(type="format/overlay", source="overlay", options=("lowerdir={{ mount 7 }}",))]
        with bind("one"):
            error = await fails_with(InvalidArgument, world.tasks.create(CreateTask(container_id="c1", rootfs=wrong)))
            assert "index out of bounds: 7" in error.text
            assert world.runtime.made == []
            assert await names(world) == []
