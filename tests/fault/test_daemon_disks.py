"""The whole daemon on disks that are full, read-only or failing: the right answer, deletes that work, nothing left."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from daemons import Daemon
from fault.load_checks import collected, files_in, folders_of, gone
from fault.load_images import Blob, Image, random_image
from fault.load_writers import Client, connected, store_and_unpack
from fault.test_kill_daemon import CONFIG
from moored.api.services.containers.v1 import containers_pb2
from moored.api.services.content.v1 import content_pb2
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2
from moored.kernel.ports.mounts import Mount
from unit.snapshots.world import image as disk_image

SNAPSHOTTER = "overlayfs"
MB = 1 << 20
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
LOST = grpc.StatusCode.DATA_LOSS

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
    pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4"),
]
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")


@pytest.fixture(params=["ext4", "tmpfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Path]:
    """A disk of 64 MB."""
    if request.param == "ext4":
        with disk_image(tmp_path / "image", 64 * MB, "mkfs.ext4", "-q", "-m", "0", place=tmp_path / "disk") as place:
            yield place
        return
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=1500", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Path]:
    """An ext4 of 64 MB."""
    with disk_image(tmp_path / "image", 64 * MB, "mkfs.ext4", "-q", "-m", "0", place=tmp_path / "disk") as place:
        yield place


def daemon_on(folder: Path, disk: Path) -> Daemon:
    daemon = Daemon(folder, CONFIG)
    daemon.root = disk / "root"
    return daemon


def talk(daemon: Daemon, work: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Run a client of one namespace on a running daemon."""

    async def go() -> None:
        async with connected(daemon.socket) as channel:
            await work(Client(channel, "ns"))

    asyncio.run(go())


async def fails(call: Awaitable[Any], *codes: grpc.StatusCode) -> str:
    """The text of a call's error, which must have one of the codes."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() not in codes:
            raise
        return str(error.details())
    raise AssertionError(f"it worked, wanted {codes}")


async def lease(client: Client, name: str) -> Client:
    await client.call("leases", "Create", leases_pb2.CreateRequest(id=name))
    return client.under(name)


async def end(client: Client, name: str) -> None:
    await client.call("leases", "Delete", leases_pb2.DeleteRequest(id=name, sync=True))


async def name_image(client: Client, image: Image, name: str) -> None:
    named = images_pb2.Image(name=name, target=image.manifest.descriptor)
    await client.call("images", "Create", images_pb2.CreateImageRequest(image=named))


async def import_image(client: Client, image: Image, name: str) -> None:
    leased = await lease(client, name)
    await store_and_unpack(leased, image, SNAPSHOTTER, name)
    await name_image(leased, image, name)
    await end(client, name)


async def remove_image(client: Client, name: str) -> None:
    await client.call("images", "Delete", images_pb2.DeleteImageRequest(name=name, sync=True))


async def shows_blobs(client: Client, image: Image) -> None:
    """All blobs of an image can be read."""
    for blob in image.blobs:
        read = await client.all("content", "Read", content_pb2.ReadContentRequest(digest=blob.digest))
        assert b"".join(part.data for part in read) == blob.data


async def shows(client: Client, image: Image) -> None:
    """The unpacked image has its files, and all of its blobs can be read."""
    await shows_blobs(client, image)
    leased = await lease(client, "look")
    view = snapshots_pb2.ViewSnapshotRequest(snapshotter=SNAPSHOTTER, key="look", parent=image.chain_id)
    mounts = (await leased.call("snapshots", "View", view)).mounts
    with folders_of([Mount(type=m.type, source=m.source, options=tuple(m.options)) for m in mounts]) as folders:
        assert files_in(folders) == image.layers[-1].files
    await end(client, "look")


def left(daemon: Daemon) -> dict[str, list[str]]:
    """What the daemon keeps on its disk, and mounts."""
    content = daemon.root / "io.containerd.content.v1.content"
    snapshots = daemon.root / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}" / "snapshots"
    return {
        "blobs": [path.name for path in content.glob("blobs/*/*")],
        "ingests": [path.name for path in content.glob("ingest/*")],
        "snapshots": [path.name for path in snapshots.iterdir()],
        "mounts": [path.name for path in daemon.state.glob("*/tmpmounts/*")],
    }


NOTHING: dict[str, list[str]] = {"blobs": [], "ingests": [], "snapshots": [], "mounts": []}


def fill(disk: Path) -> Path:
    """Take all room that is left, to the last byte."""
    ballast = disk / "ballast"
    fd = os.open(ballast, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for size in (MB, 4096, 1):
            try:
                while os.write(fd, bytes(size)):
                    pass
            except OSError:
                continue
    finally:
        os.close(fd)
    return ballast


# --- full -------------------------------------------------------------------------------------------------------------


async def until_full(most: int, call: Callable[[int], Awaitable[Any]]) -> int:
    """Make calls, numbered from 0, until the disk is full; the number of the one that failed."""
    for number in range(most):
        try:
            await call(number)
        except grpc.aio.AioRpcError as error:
            if error.code() is not FULL:
                raise
            return number
    raise AssertionError("the disk never became full")


async def prepared(client: Client, key: str, parent: str) -> None:
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent)
    await client.call("snapshots", "Prepare", request)


async def remove(client: Client, key: str) -> None:
    """Remove a snapshot if there is one."""
    if key:
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key)
        await client.call("snapshots", "Remove", request)


async def contained(client: Client, name: str) -> None:
    """A container whose spec takes much room in the database."""
    container = containers_pb2.Container(id=name, runtime=containers_pb2.Container.Runtime(name="r"))
    container.spec.value = bytes(MB // 2)
    await client.call("containers", "Create", containers_pb2.CreateContainerRequest(container=container))


@pytest.mark.timeout(180)
def test_full_disk_serves_reads_and_deletes_and_goes_on_once_there_is_room(tmp_path: Path, small: Path) -> None:
    choose = random.Random(7)
    kept, later = random_image(choose), random_image(choose, files=10, size=300_000)

    async def before(client: Client) -> None:
        await import_image(client, kept, "kept")
        await import_image(client, random_image(choose), "old")
        leased = await lease(client, "many")
        blobs = [Blob("", choose.randbytes(MB)) for _ in range(64)]
        cut = await until_full(len(blobs), lambda number: leased.store(blobs[number]))
        statuses = await client.call("content", "ListStatuses", content_pb2.ListStatusesRequest())
        assert [one.ref for one in statuses.statuses] == [f"blob-{blobs[cut].digest}"]
        await lease(client, "cut")
        for layer in later.layers[:1]:
            await client.under("cut").store(layer.blob)

    async def full(client: Client) -> None:
        await shows_blobs(client, kept)
        cut = client.under("cut")
        snapshots = await until_full(2000, lambda number: prepared(cut, f"k{number}", kept.chain_id))
        ingest = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="new", data=bytes(MB))
        for call in (client.write(ingest), store_and_unpack(cut, later, SNAPSHOTTER, "cut")):
            assert str(small) not in await fails(call, FULL)
        containers = await until_full(64, lambda number: contained(client, f"c{number}"))
        await remove(client, "k0" if snapshots else "")
        for number in range(containers):
            await client.call("containers", "Delete", containers_pb2.DeleteContainerRequest(id=f"c{number}"))
        await remove_image(client, "old")
        await end(client, "cut")
        statuses = await client.call("content", "ListStatuses", content_pb2.ListStatusesRequest())
        for one in statuses.statuses:
            await client.call("content", "Abort", content_pb2.AbortRequest(ref=one.ref))
        infos = await client.all("content", "List", content_pb2.ListContentRequest())
        blobs = [info.digest for page in infos for info in page.info if info.size == MB]
        for digest in blobs[:5]:
            await client.call("content", "Delete", content_pb2.DeleteContentRequest(digest=digest))
        await end(client, "many")

    async def after(client: Client) -> None:
        await shows(client, kept)
        await import_image(client, later, "later")
        await shows(client, later)
        await remove_image(client, "kept")
        await remove_image(client, "later")
        await collected(client)

    daemon = daemon_on(tmp_path, small)
    with daemon:
        talk(daemon, before)
        ballast = fill(small)
        talk(daemon, full)
        ballast.unlink()
        talk(daemon, after)
        assert left(daemon) == NOTHING
        assert "Traceback" not in daemon.text()


def test_daemon_starts_on_a_full_disk_and_frees_it(tmp_path: Path, small: Path) -> None:
    daemon = daemon_on(tmp_path, small)
    image = random_image(random.Random(8))
    with daemon:
        talk(daemon, lambda client: import_image(client, image, "i"))
    fill(small)
    daemon.log.unlink()

    async def free(client: Client) -> None:
        await shows_blobs(client, image)
        await remove_image(client, "i")

    with daemon:
        talk(daemon, free)
        assert left(daemon) == NOTHING


def test_backup_on_a_full_disk_is_refused_and_leaves_nothing(tmp_path: Path, small: Path) -> None:
    command = [sys.executable, "-m", "moored.api.cli.main", "--address", str(tmp_path / "m.sock")]
    daemon = Daemon(tmp_path)
    daemon.root = small / "root"
    with daemon:
        fill(small)
        done = subprocess.run(
            [*command, "metadata", "backup", str(tmp_path / "copy")], capture_output=True, text=True, check=False
        )

        assert done.returncode == 1
        assert "no space left on device" in done.stderr.lower()
        assert not (tmp_path / "copy").exists()
        assert "Traceback" not in daemon.text()


# --- read-only --------------------------------------------------------------------------------------------------------


def test_daemon_does_not_start_on_a_read_only_disk_and_says_so(tmp_path: Path, disk: Path) -> None:
    daemon = daemon_on(tmp_path, disk)
    with daemon:
        pass
    daemon.log.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    status, log = daemon.fails_to_start()

    assert status == 1
    assert "read-only file system" in log.lower()
    assert "Traceback" not in log


def test_disk_that_turns_read_only_ends_the_daemon_and_loses_nothing(tmp_path: Path) -> None:
    image, place = random_image(random.Random(9)), tmp_path / "disk"
    daemon = daemon_on(tmp_path, place)
    with disk_image(tmp_path / "image", 64 * MB, "mkfs.ext4", "-q", "-m", "0", place=place):
        with running(daemon):
            talk(daemon, lambda client: import_image(client, image, "i"))
            # What the kernel does when the disk fails, asked for.
            subprocess.run(["mount", "-o", "remount,abort", str(place)], check=True)

            async def write(client: Client) -> None:
                await fails(lease(client, "l"), grpc.StatusCode.UNAVAILABLE)

            talk(daemon, write)
            assert ends(daemon) == 1
            assert "giving up" in daemon.text()
            assert "Traceback" not in daemon.text()
        daemon.log.unlink()
    place.rmdir()
    place.mkdir()
    subprocess.run(["e2fsck", "-p", str(tmp_path / "image")], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(tmp_path / "image"), str(place)], check=True)
    try:
        with running(daemon):
            talk(daemon, lambda client: shows(client, image))
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def running(daemon: Daemon) -> Generator[Daemon]:
    """The daemon; whether it still runs in the end is no matter."""
    try:
        yield daemon.start()
    finally:
        daemon.stop(signal.SIGKILL)


def ends(daemon: Daemon) -> int:
    """Wait for a daemon that ends by itself; its exit status."""
    assert daemon.process is not None
    status = daemon.process.wait(20)
    gone(daemon.process.pid)
    return status


# --- failing calls ----------------------------------------------------------------------------------------------------


@contextmanager
def injected(daemon: Daemon, folder: Path, inject: str) -> Generator[Path]:
    """Let system calls of the daemon and its children fail during the block; the file names those that did."""
    assert daemon.process is not None
    trace = folder / f"trace-{inject.replace(':', '-').replace('/', '-')}"
    call = inject.partition(":")[0]
    command = ["strace", "-f", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={inject}"]
    tracer = subprocess.Popen([*command, "-p", str(daemon.process.pid)], stderr=subprocess.PIPE)
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if b"attached" not in line:
            pytest.skip(f"strace may not trace here: {line.decode()}")
        yield trace
    finally:
        tracer.terminate()
        try:
            tracer.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            # It waits for a thread that was killed with its process.
            tracer.kill()
            tracer.communicate()


def fired(trace: Path) -> bool:
    return "(INJECTED)" in trace.read_text()


@needs_strace
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("call", "error", "codes"),
    [
        ("fsync", "EIO", (LOST,)),
        ("renameat,rename,renameat2", "EIO", (LOST,)),
        ("mkdirat,mkdir", "ENOSPC", (FULL,)),
    ],
    ids=["fsync", "rename", "mkdir"],
)
def test_failing_call_of_an_import_fails_it_alone(
    tmp_path: Path, disk: Path, call: str, error: str, codes: tuple[grpc.StatusCode, ...]
) -> None:
    """Each n-th call fails until none of an import is left to fail; every time the retry works and leaves nothing."""
    choose = random.Random(10)
    outcomes: list[str] = []

    def attempt(daemon: Daemon, when: int) -> bool:
        image = random_image(choose)

        async def broken(client: Client) -> None:
            leased = await lease(client, "l")
            try:
                await store_and_unpack(leased, image, SNAPSHOTTER, "k")
            except grpc.aio.AioRpcError as fault:
                if fault.code() not in codes:
                    raise
                outcomes.append(fault.code().name)

        with injected(daemon, tmp_path, f"{call}:error={error}:when={when}") as trace:
            talk(daemon, broken)

        async def retry(client: Client) -> None:
            await store_and_unpack(client.under("l"), image, SNAPSHOTTER, "k2")
            await name_image(client, image, "i")
            await end(client, "l")
            await shows(client, image)
            await remove_image(client, "i")

        talk(daemon, retry)
        assert left(daemon) == NOTHING, f"after call {when}"
        return fired(trace)

    daemon = daemon_on(tmp_path, disk)
    with daemon:
        when = 1
        while attempt(daemon, when):
            # Steps that grow find the ends of a long sequence in little time.
            when += 1 + when // 6
            assert when < 300
        assert "Traceback" not in daemon.text()
    assert len(outcomes) > 1


@needs_strace
def test_snapshot_whose_files_cannot_be_synced_is_not_committed(tmp_path: Path, disk: Path) -> None:
    image = random_image(random.Random(11))
    daemon = daemon_on(tmp_path, disk)

    async def broken(client: Client) -> None:
        leased = await lease(client, "l")
        text = await fails(store_and_unpack(leased, image, SNAPSHOTTER, "k"), LOST)
        assert "input/output error" in text
        found = await client.all("snapshots", "List", snapshots_pb2.ListSnapshotsRequest(snapshotter=SNAPSHOTTER))
        assert [info.kind for page in found for info in page.info] == [snapshots_pb2.ACTIVE]
        await end(client, "l")

    with daemon:
        with injected(daemon, tmp_path, "syncfs:error=EIO") as trace:
            talk(daemon, broken)
        assert fired(trace)
        assert left(daemon) == NOTHING
        talk(daemon, lambda client: import_image(client, image, "i"))
        talk(daemon, lambda client: shows(client, image))


@needs_strace
def test_metadata_that_cannot_be_synced_ends_the_daemon_and_loses_nothing(tmp_path: Path, disk: Path) -> None:
    image = random_image(random.Random(12))
    daemon = daemon_on(tmp_path, disk)

    async def write(client: Client) -> None:
        text = await fails(lease(client, "l"), grpc.StatusCode.UNAVAILABLE)
        assert "metadata store has stopped" in text

    with running(daemon):
        talk(daemon, lambda client: import_image(client, image, "i"))
        with injected(daemon, tmp_path, "fdatasync:error=EIO") as trace:
            talk(daemon, write)
            assert ends(daemon) == 1
        assert fired(trace)
        assert "giving up" in daemon.text()
    daemon.log.unlink()
    with daemon:
        talk(daemon, lambda client: shows(client, image))
        talk(daemon, lambda client: remove_image(client, "i"))
        assert left(daemon) == NOTHING


@needs_strace
@pytest.mark.timeout(400)
@pytest.mark.parametrize("call", ["fsync", "fdatasync", "renameat", "mkdirat", "syncfs", "unlinkat"])
def test_killed_at_a_call_of_an_import_the_retry_works(tmp_path: Path, disk: Path, call: str) -> None:
    choose = random.Random(13)
    daemon = daemon_on(tmp_path, disk)
    when, kills = 1, 0

    def attempt() -> bool:
        image = random_image(choose)

        async def work(client: Client) -> None:
            try:
                await import_image(client, image, "i")
                await remove_image(client, "i")
            except grpc.aio.AioRpcError as fault:
                if fault.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

        async def again(client: Client) -> None:
            leases = (await client.call("leases", "List", leases_pb2.ListRequest())).leases
            images = (await client.call("images", "List", images_pb2.ListImagesRequest())).images
            if images:
                await shows(client, image)
                await remove_image(client, "i")
            for one in leases:
                await end(client, one.id)
            await import_image(client, image, "i")
            await shows(client, image)
            await remove_image(client, "i")
            await collected(client)

        with running(daemon):
            with injected(daemon, tmp_path, f"{call}:signal=SIGKILL:when={when}"):
                talk(daemon, work)
            assert daemon.process is not None
            killed = settled(daemon.process) == -signal.SIGKILL
        gone(daemon.process.pid)
        daemon.log.unlink()
        with daemon:
            talk(daemon, again)
            assert left(daemon) == NOTHING, f"killed at {call} {when}"
        daemon.log.unlink()
        return killed

    while attempt():
        kills += 1
        when += 1 + when // 2
        assert when < 300
    assert kills > 0


def settled(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a process that may just be ending, None for one that goes on."""
    deadline = time.monotonic() + 0.2
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.returncode
