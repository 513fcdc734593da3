"""Power cuts under load: the disk as it was at random moments, and what a fresh daemon makes of it.

The daemon's root is on the disk of `powercut`. MOORED_TEST_CUTS says how many (12), MOORED_TEST_SEED where the
randomness begins.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemons import Daemon
from fault.load_checks import Checker
from fault.load_images import random_image
from fault.load_model import Key, Model
from fault.load_writers import NAMESPACES, WRITERS, Client, connected, store_and_unpack, work
from fault.test_kill_daemon import CONFIG, SEED
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2
from powercut import Disk, disk_in, needs_disk

CUTS = int(os.environ.get("MOORED_TEST_CUTS", "12"))
SNAPSHOTTER = "overlayfs"

pytestmark = needs_disk


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Disk]:
    with disk_in(tmp_path) as made:
        yield made


def daemon_on(folder: Path, root: Path) -> Daemon:
    """A daemon with its root on a disk and all else in a folder of its own."""
    folder.mkdir()
    daemon = Daemon(folder, CONFIG)
    daemon.root = root / "root"
    return daemon


@contextmanager
def running(daemon: Daemon) -> Generator[Daemon]:
    """The daemon, killed in the end."""
    try:
        yield daemon.start()
    finally:
        daemon.stop(signal.SIGKILL)


def after(disk: Disk, copy: Path, model: Model, since: int, until: int) -> Checker:
    """Start a daemon on a copy of the disk and check all of it."""
    with disk.mounted(copy) as place:
        daemon = daemon_on(disk.folder / f"daemon-{copy.name}", place)
        # As if the machine had started anew.
        (daemon.root / "io.containerd.content.v1.content" / "boot").write_text("00000000-0000-4000-8000-000000000000")
        checker = Checker(daemon, model, SNAPSHOTTER, power_cut=True)

        async def check() -> None:
            async with connected(daemon.socket) as channel:
                await checker.check(channel, since, until, settle=False)

        with running(daemon):
            try:
                asyncio.run(check())
            except BaseException as error:
                error.add_note(f"at {copy.name}, seed {SEED}; the log:\n{daemon.text()[-4000:]}")
                raise
        return checker


@pytest.mark.timeout(600)
def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path, disk: Disk) -> None:
    choose, model = random.Random(SEED), Model()
    cuts: list[tuple[Path, int, int]] = []
    began = time.monotonic()

    async def load(daemon: Daemon) -> None:
        async with connected(daemon.socket) as channel:
            names = [f"w{number}" for number in range(WRITERS)]
            working = asyncio.create_task(work(channel, model, SEED, SNAPSHOTTER, asyncio.Event(), names))
            for _ in range(CUTS):
                await asyncio.wait([working], timeout=choose.uniform(0.1, 1.0))
                assert not working.done(), working.exception()
                since = model.now()
                copy = await asyncio.to_thread(disk.cut)
                cuts.append((copy, since, model.now()))
            working.cancel()
            await asyncio.wait([working])

    with running(daemon_on(tmp_path / "live", tmp_path / "disk")) as daemon:
        asyncio.run(load(daemon))
    checkers = [after(disk, copy, model, since, until) for copy, since, until in cuts]

    seen = {what: sum(checker.counts[what] for checker in checkers) for what in checkers[0].counts}
    assert seen["blobs"] > CUTS
    assert seen["images"] > CUTS
    assert time.monotonic() - began < 60 + 10 * CUTS


@pytest.mark.timeout(300)
def test_unpacked_files_survive_a_power_cut_right_after_the_snapshot_was_committed(tmp_path: Path, disk: Disk) -> None:
    """Nothing else syncs here: an image is imported alone, large enough to sit in the page cache, and cut at once."""
    choose, model = random.Random(SEED), Model()
    cuts: list[tuple[Path, int]] = []

    async def load(daemon: Daemon) -> None:
        async with connected(daemon.socket) as channel:
            for number in range(4):
                client = Client(channel, NAMESPACES[0], f"l{number}")
                one = random_image(choose, files=20, size=400_000)
                model.images[one.manifest.digest] = one
                with model.writing(Key("lease", client.namespace, f"l{number}"), "there"):
                    await client.under("").call("leases", "Create", leases_pb2.CreateRequest(id=f"l{number}"))
                await store_and_unpack(client, one, SNAPSHOTTER, f"k{number}")
                named = images_pb2.Image(name=f"i{number}", target=one.manifest.descriptor)
                with model.writing(Key("image", client.namespace, f"i{number}"), (one.manifest.digest, "")):
                    await client.call("images", "Create", images_pb2.CreateImageRequest(image=named))
                cuts.append((await asyncio.to_thread(disk.cut), model.now()))

    with running(daemon_on(tmp_path / "live", tmp_path / "disk")) as daemon:
        asyncio.run(load(daemon))
    for number, (copy, moment) in enumerate(cuts):
        checker = after(disk, copy, model, moment, moment)
        assert checker.counts["images"] == number + 1


@pytest.mark.timeout(120)
def test_rig_loses_what_was_not_synced(tmp_path: Path, disk: Disk) -> None:
    """The rig is worth something only if it loses what nobody made durable."""
    for name in ("synced", "lost"):
        fd = os.open(tmp_path / "disk" / name, os.O_CREAT | os.O_WRONLY)
        os.write(fd, name.encode())
        if name == "synced":
            os.fsync(fd)
        os.close(fd)

    with disk.mounted(disk.cut()) as place:
        assert (place / "synced").read_bytes() == b"synced"
        assert not (place / "lost").exists() or not (place / "lost").read_bytes()
