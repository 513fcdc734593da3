"""The mount manager: what it carries out, what it leaves, what it knows, and that nothing stays mounted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel import mounts as mounting
from moored.kernel.conformance import fails_with
from moored.kernel.errors import (
    InvalidArgument,
    NotFound,
    Unimplemented,
    Unknown,
)
from moored.kernel.ports.mounts import Activation, ActiveMount, Mount
from moored.plugins.mounts import manager as implementation
from unit.mounts.world import EROFS, bound, erofs_image, opened, tmpfs
from unit.snapshots.world import nothing_left

pytestmark = pytest.mark.root


def backing_files() -> list[Path]:
    return list(Path("/sys/block").glob("loop*/loop/backing_file"))


def linked(active: ActiveMount) -> Path:
    return Path(active.mount_point).readlink()


def things() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    files = (backing.read_text().strip() for backing in backing_files())
    return {path for path in (*(line.split(" ")[4] for line in lines), *files) if "pytest" in path}


@contextmanager
def nothing_left_mounted() -> Generator[None]:
    """Fails if the block leaves a mount or a loop device of its own; it may leave descriptors of libraries."""
    before = things()
    yield
    assert things() - before == set()


class Recorder:
    """A handler that makes a folder with a file that holds the mount's source; it fails for source `bad`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def mount(self, what: Mount, target: Path, earlier: Sequence[ActiveMount]) -> ActiveMount:
        self.calls.append(f"mount {what.source} after {len(earlier)}")
        if what.source == "bad":
            raise Unknown("it is bad")
        if what.source == "gone":
            raise FileNotFoundError(2, "No such file or directory")
        await asyncio.to_thread(target.mkdir)
        (target / "source").write_text(what.source)
        return ActiveMount(mount=what, mount_point=str(target), mounted_at=time.time_ns(), data={"k": what.source})

    async def unmount(self, target: Path) -> None:
        self.calls.append(f"unmount {target.name}")
        (target / "source").unlink(missing_ok=True)


def made(*sources: str) -> list[Mount]:
    return [Mount(type="made", source=source) for source in sources]


@on_loop
async def test_temporary_activation_is_whole_and_goes_whole(tmp_path: Path) -> None:
    before = time.time_ns()
    with nothing_left_mounted():
        async with opened(tmp_path) as world:
            done = await world.manager.activate(
                "a name/with any: text", [tmpfs("size=1m"), tmpfs()], labels={"l": "v", "empty": ""}, temporary=True
            )
            first, second = done.active
            assert (first.mount, first.mount_point) == (tmpfs("size=1m"), f"{world.places}/1/2")
            assert (second.mount, second.mount_point) == (tmpfs(), f"{world.places}/1/1")
            assert before <= (first.mounted_at or 0) <= (second.mounted_at or 0) <= time.time_ns()
            assert done.system == (Mount(type="bind", source=second.mount_point, options=("rbind",)),)
            assert world.mounted == ["1/1", "1/2"]

            known = await world.manager.info(done.name)
            short = [replace(one, mount=Mount(type="tmpfs", source="")) for one in done.active]
            assert known == Activation(name=done.name, active=tuple(short), system=done.system, labels={"l": "v"})
            assert await world.manager.list(["name==other"]) == [known]
            await world.manager.deactivate(done.name)
            assert (world.mounted, world.folders, await world.manager.list()) == ([], [], [])


@on_loop
async def test_handlers_mount_what_is_theirs_and_those_before(tmp_path: Path) -> None:
    handler = Recorder()
    async with opened(tmp_path, handlers={"made": handler}) as world:
        mounts = [tmpfs(), *made("x"), bound("/left"), tmpfs()]
        done = await world.manager.activate("a", mounts)
        assert [one.mount for one in done.active] == mounts[:2]
        assert done.system == tuple(mounts[2:])
        assert (world.places / "1/1/source").read_text() == "x"
        await world.manager.deactivate("a")
        assert handler.calls == ["mount x after 1", "unmount 1"]

        mounts = [*made("x"), tmpfs()]
        done = await world.manager.activate("a", mounts, handled={"made"}, temporary=True)
        assert len(done.active) == 2, "temporary wins"
        await world.manager.deactivate("a")


@on_loop
async def test_what_the_caller_handles_is_left_to_it(tmp_path: Path) -> None:
    async with opened(tmp_path, handlers={"made": Recorder()}) as world:
        call = world.manager.activate("a", [*made("x"), bound("/left")], handled={"made"})
        await fails_with(Unimplemented, call)
        formatted = Mount(type="format/overlay", source="overlay", options=("lowerdir={{ mount 0 }}",))
        await fails_with(Unimplemented, world.manager.activate("a", [formatted], handled={"format/*"}))
        done = await world.manager.activate("a", [*made("x"), formatted], handled={"made"})
        assert done.system[0].options == (f"lowerdir={world.places}/1/1",)
        await world.manager.deactivate("a")


@on_loop
async def test_many_mounts_have_places_in_the_order_of_their_names(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        done = await world.manager.activate("a", [tmpfs()] * 12, temporary=True)
        assert [Path(one.mount_point).name for one in done.active] == [f"{number:02}" for number in range(12, 0, -1)]
        await world.manager.deactivate("a")
        assert world.mounted == []
        await fails_with(InvalidArgument, world.manager.activate("a", [tmpfs()] * 256, temporary=True))


@on_loop
async def test_failed_activation_leaves_nothing(tmp_path: Path) -> None:
    handler = Recorder()
    async with opened(tmp_path, handlers={"made": handler}) as world:
        formatted = Mount(type="format/tmpfs", source="{{ mount 5 }}")
        for mounts, text in (
            ([tmpfs(), *made("x", "bad")], "it is bad"),
            ([tmpfs(), *made("gone")], "mount handler failed for made 'gone': No such file or directory"),
            ([tmpfs(), formatted, *made("x")], "index out of bounds: 5, has 1 active mounts"),
        ):
            kind = InvalidArgument if "bounds" in text else Unknown
            await fails_with(kind, world.manager.activate("a", mounts), text)
        error = await fails_with(
            Unknown, world.manager.activate("a", [tmpfs(), Mount(type="no-such", source="x")], temporary=True)
        )
        assert error.text.startswith("mount failed for no-such 'x': No such device")
        assert (world.mounted, world.folders, await world.manager.list()) == ([], [], [])
        assert handler.calls[:4] == ["mount x after 1", "mount bad after 2", "unmount 1", "unmount 2"]


@on_loop
async def test_block_of_activated_mounts_ends_with_them(tmp_path: Path) -> None:
    async with opened(tmp_path, handlers={"made": Recorder()}) as world:
        async with world.manager.activated([tmpfs(), *made("x"), bound("/left")]) as left:
            assert left == (bound("/left"),)
            assert len(world.mounted) == 1
            await world.objects.collect()
            assert len(world.mounted) == 1
        assert (world.mounted, world.folders, await world.manager.list()) == ([], [], [])
        await fails_with(Unknown, entered(world.manager.activated(made("bad"))), "it is bad")
        assert world.folders == []


async def entered(context: object) -> None:
    async with context:  # type: ignore[attr-defined]
        raise AssertionError("it was entered")


@on_loop
async def test_mount_in_use_goes_with_a_collection_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementation, "BUSY_SECONDS", 0.001)
    async with opened(tmp_path) as world:
        done = await world.manager.activate("a", [tmpfs(), tmpfs()], temporary=True)
        with (Path(done.active[0].mount_point) / "used").open("w"):
            error = await fails_with(Unknown, world.manager.deactivate("a"))
            assert "in use" in error.text
            assert world.mounted == ["1/2"]
            await fails_with(NotFound, world.manager.info("a"))
            await world.objects.collect()
            assert world.mounted == ["1/2"]
        await world.objects.collect()
        assert (world.mounted, world.folders) == ([], [])


# --- loop devices and erofs -------------------------------------------------------------------------------------------


@on_loop
async def test_loop_device_is_there_for_the_mounts_that_follow(tmp_path: Path) -> None:
    image = tmp_path / "root" / "image"
    image.parent.mkdir()
    with nothing_left_mounted():
        async with opened(tmp_path) as world:
            made_first = ("X-containerd.mkfs.size=8MiB", "X-containerd.mkfs.fs=ext4")
            mounts = [
                Mount(type="mkfs/loop", source=str(image), options=made_first),
                Mount(type="format/ext4", source="{{ mount 0 }}", options=("rw",)),
            ]
            done = await world.manager.activate("a", mounts, temporary=True)
            device = linked(done.active[0])
            assert device.stat().st_rdev >> 8 == 7
            (Path(done.active[1].mount_point) / "f").write_text("kept")
            await world.manager.deactivate("a")
            assert device.name not in {path.parent.parent.name for path in backing_files()}
            done = await world.manager.activate("b", mounts, temporary=True)
            assert (Path(done.active[1].mount_point) / "f").read_text() == "kept"
            await world.manager.deactivate("b")


@on_loop
async def test_erofs_layers_and_a_writable_image_make_an_overlay(tmp_path: Path) -> None:
    """As containerd's erofs snapshotter gives them."""
    images = [erofs_image(tmp_path / f"{number}.erofs", b"f%d" % number) for number in range(2)]
    (tmp_path / "root").mkdir()
    with nothing_left_mounted():
        async with opened(tmp_path, EROFS) as world:
            mounts = [
                Mount(
                    type="mkfs/ext4",
                    source=f"{tmp_path}/root/rw.img",
                    options=("X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=16m", "rw", "loop"),
                ),
                *(Mount(type="erofs", source=str(image), options=("ro", "loop")) for image in images),
                Mount(
                    type="format/mkdir/overlay",
                    source="overlay",
                    options=(
                        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                        "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                        "workdir={{ mount 0 }}/work",
                        "upperdir={{ mount 0 }}/upper",
                        "lowerdir={{ overlay 2 1 }}",
                    ),
                ),
            ]
            async with world.manager.activated(mounts) as left:
                assert len(left) == 1
                with mounting.mounted(left) as top:
                    assert sorted(path.name for path in top.iterdir()) == ["f0", "f1"]
                    assert (top / "f0").read_text() == "from erofs"
                    (top / "f0").write_text("written")
            done = await world.manager.activate("a", mounts, temporary=True)
            assert (Path(done.system[0].source) / "f0").read_text() == "written"
            await world.manager.deactivate("a")
            verified = Mount(type="erofs", source=str(images[0]), options=("X-containerd.dmverity=/x",))
            await fails_with(Unimplemented, world.manager.activate("a", [verified]))


@on_loop
async def test_erofs_goes_through_loop_devices_where_files_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moored.plugins.mounts.erofs import handler

    def refusing(what: Mount, target: Path) -> None:
        if not Path(what.source).is_block_device():
            raise OSError(15, "Block device required")
        mounting.mount(what, target)

    monkeypatch.setattr(handler, "mount", refusing)
    image = erofs_image(tmp_path / "image")
    with nothing_left():
        erofs = handler.ErofsHandler()
        for number in range(2):
            place = tmp_path / str(number)
            await erofs.mount(Mount(type="erofs", source=str(image), options=("ro",)), place, [])
            assert (place / "hello").read_text() == "from erofs"
            await erofs.unmount(place)


@on_loop
async def test_unnamed_mount_in_use_goes_with_a_collection_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "BUSY_SECONDS", 0.001)
    async with opened(tmp_path) as world:
        await world.objects.collect()
        mounts = [tmpfs(), Mount(type="format/bind", source="{{ mount 0 }}")]
        async with world.manager.activated(mounts) as left:
            used = (Path(left[0].source) / "used").open("w")
        assert len(world.mounted) == 1
        used.close()
        await world.objects.collect()
        assert (world.mounted, world.folders) == ([], [])
