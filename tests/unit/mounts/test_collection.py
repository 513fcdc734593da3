"""Who keeps a mount: leases, labels, its own making; and what is left of one after a crash or a boot."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel import mounts as mounting
from moored.kernel.conformance import fails_with
from moored.kernel.errors import NotFound
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import Container
from moored.kernel.ports.images import Descriptor, Image
from unit.mounts.world import NS, Opened, opened, tmpfs

pytestmark = pytest.mark.root

NO_LABELS: Mapping[str, str] = {}


async def activate(world: Opened, name: str, labels: Mapping[str, str] = NO_LABELS) -> None:
    await world.manager.activate(name, [tmpfs()], labels=labels, temporary=True)


async def names(world: Opened) -> list[str]:
    return [one.name for one in await world.manager.list()]


@on_loop
async def test_unheld_mount_goes_with_a_collection(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await activate(world, "a")
        done = await world.objects.collect()
        assert done.removed == {"mount": 1}
        assert (world.mounted, world.folders, await names(world)) == ([], [], [])


@on_loop
async def test_lease_holds_what_was_activated_under_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.objects.leases.create("l", {})
        with bind(NS, "l"):
            await activate(world, "a")
            await activate(world, "b")
        with bind(NS, "missing"):
            await activate(world, "c")
        await world.objects.collect()
        assert await names(world) == ["a", "b"]
        assert await world.objects.leases.resources("l") == [], "leases do not tell of mounts"
        await world.manager.deactivate("a")
        await activate(world, "a")
        await world.objects.collect()
        assert await names(world) == ["b"], "the new one is not under the lease"
        await world.objects.leases.delete("l")
        await world.objects.collect()
        assert (world.mounted, world.folders) == ([], [])


@on_loop
async def test_labels_tie_mounts_to_other_objects(tmp_path: Path) -> None:
    ref, back = "containerd.io/gc.ref.mount", "containerd.io/gc.bref"
    async with opened(tmp_path) as world:
        target = Descriptor(media_type="text/plain", digest=f"sha256:{'0' * 64}", size=1)
        await world.objects.images.create(Image(name="i", target=target, labels={f"{ref}.x": "by image"}))
        await world.objects.containers.create(Container(id="c", runtime="r"))
        await activate(world, "by image")
        await activate(world, "of container", {f"{back}.container": "c"})
        await activate(world, "of container too", {f"{back}.container/x": "c"})
        await activate(world, "of image", {f"{back}.image": "i"})
        await activate(world, "of nobody", {f"{back}.container": "missing", f"{back}.containers": "c"})
        await world.objects.collect()
        assert await names(world) == ["by image", "of container", "of container too", "of image"]
        await world.objects.containers.delete("c")
        await world.objects.collect()
        assert await names(world) == ["by image", "of image"]
        await world.objects.images.delete("i")
        await world.objects.collect()
        assert (world.mounted, world.folders) == ([], [])


@on_loop
async def test_collections_leave_what_is_being_made(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        number = await world.objects.activations.begin("a", {})
        (world.places / str(number)).mkdir()
        await world.objects.collect()
        assert world.folders == [str(number)]
        calls = [world.manager.activate(f"m{n}", [tmpfs()] * 4, temporary=True) for n in range(8)]
        making = [asyncio.ensure_future(call) for call in calls]
        while not all(task.done() for task in making):
            await world.objects.collect()
        assert not [task.exception() for task in making if task.exception()]
        await world.objects.collect()
        assert (world.mounted, world.folders) == ([], [str(number)])


@on_loop
async def test_mounts_go_with_their_namespace(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await activate(world, "a")
        await world.objects.namespaces.delete(NS)
        await world.objects.collect()
        assert (world.mounted, world.folders) == ([], [])


# --- across starts ----------------------------------------------------------------------------------------------------


@on_loop
async def test_activations_outlive_the_daemon(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await activate(world, "a", {"l": "v"})
        before = await world.manager.info("a")
    async with opened(tmp_path) as world:
        assert await world.manager.info("a") == before
        assert world.mounted == ["1/1"]
        await activate(world, "b")
        assert world.folders == ["1", "2"]
        for name in ("a", "b"):
            await world.manager.deactivate(name)
        assert (world.mounted, world.folders) == ([], [])


@on_loop
async def test_what_a_crash_left_is_undone_at_the_next_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await activate(world, "whole")
        number = await world.objects.activations.begin("half", {})
        for name in (str(number), "unnamed-0", "77"):
            place = world.places / name / "1"
            place.mkdir(parents=True)
            place.with_name("1-type").write_text("tmpfs")
            place.with_name("2-type").write_text("loop")
            mounting.mount(tmpfs(), place)
        (world.places / "77/3-type").write_text("tmpfs")
    with (tmp_path / "state/io.containerd.mount-manager.v1.bolt/t/77/1/used").open("w"):
        async with opened(tmp_path) as world:
            assert (world.mounted, world.folders, await names(world)) == (["1/1"], ["1"], ["whole"])
            await activate(world, "half")
            for name in ("half", "whole"):
                await world.manager.deactivate(name)


@on_loop
async def test_activation_whose_folder_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await activate(world, "a")
        mounting.unmount_all(world.places / "1")
        shutil.rmtree(world.places / "1")
    async with opened(tmp_path) as world:
        await fails_with(NotFound, world.manager.info("a"))


@on_loop
async def test_activations_of_an_earlier_boot_are_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await activate(world, "a")
        mounting.unmount_all(world.places / "1")
        (world.places.parent / "boot").write_text("another")
        loop = world.places / "9" / "1"
        loop.parent.mkdir()
        loop.symlink_to("/dev/loop0")
        loop.with_name("1-type").write_text("loop")
    async with opened(tmp_path) as world:
        assert (world.folders, await names(world)) == ([], [])
        await activate(world, "a")
        await world.manager.deactivate("a")
