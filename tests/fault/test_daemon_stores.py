"""The catalogue of damaged stores (rows 126 to 130) and of lost ones: what a daemon does about each at its start."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from daemons import START_SECONDS, Daemon
from fault.test_hostile_calls import EMPTY, OK, Client
from moored.api.services.content.v1 import content_pb2
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2

DATA = b"kept"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
PAGE = 4096
TRANSACTION = 16 + 128
"""Offset in a meta page of the number of the transaction that wrote it."""
ROOTED = {"containerd.io/gc.root": "x"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a daemon that was stopped, with a blob, an ingest, a snapshot and images."""
    daemon = Daemon(tmp_path_factory.mktemp("original"))
    with daemon, daemon.channel() as channel:
        client = Client(channel, "ns")
        assert client.write({"ref": "r"}, {"action": 2, "data": DATA, "labels": ROOTED}) == OK
        assert client.write({"action": 1, "ref": "half", "data": b"half"}) == OK
        assert client.prepare("k") == OK
        for number in range(50):
            assert client.image(f"i{number}", labels={"x": "y" * 500}) == OK
    return daemon.root


@pytest.fixture
def daemon(tmp_path: Path, original: Path) -> Generator[Daemon]:
    """A daemon with a copy of that root, not started."""
    made = Daemon(tmp_path)
    shutil.copytree(original, made.root)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def metadata(daemon: Daemon) -> Path:
    return daemon.root / "io.moored.database.v1.lmdb"


def database(daemon: Daemon) -> Path:
    return metadata(daemon) / "environment" / "data.mdb"


def stored(daemon: Daemon) -> set[str]:
    """Everything below content and snapshots."""
    folders = ("io.containerd.content.v1.content", "io.containerd.snapshotter.v1.native/snapshots")
    return {str(path) for folder in folders for path in (daemon.root / folder).rglob("*")}


def whole(daemon: Daemon) -> list[str]:
    """Start it, and give the names of its images; the blob must be readable."""
    with daemon, daemon.channel() as channel:
        client = Client(channel, "ns")
        read = client.ask(client.content.Read, content_pb2.ReadContentRequest(digest=DIGEST))
        assert b"".join(part.data for part in read) == DATA
        images = client.ask(client.images.List, images_pb2.ListImagesRequest()).images
        return [image.name for image in images]


# --- one ingest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["startedat", "updatedat", "ref", "total"])
@pytest.mark.parametrize("running", [False, True], ids=["at start", "while running"])
def test_126_damaged_ingest_harms_no_other(daemon: Daemon, name: str, running: bool) -> None:
    ingests = daemon.root / "io.containerd.content.v1.content" / "ingest"

    def damage() -> None:
        (folder,) = [path for path in ingests.iterdir() if (path / "ref").read_text().endswith("half")]
        (folder / name).write_bytes(b"")

    if not running:
        damage()
    with daemon, daemon.channel() as channel:
        client = Client(channel, "ns")
        assert client.write({"action": 1, "ref": "good", "data": b"good"}) == OK
        if running:
            damage()

        statuses = client.statuses()

        assert statuses["good"] == 4
        assert client.fails(client.content.Status, content_pb2.StatusRequest(ref="good")) == OK
        assert client.write({"ref": "half"}, {"action": 1, "offset": 0, "data": b"anew"}) == OK
        assert client.statuses() == {"good": 4, "half": 4}
        for ref in ("good", "half"):
            client.ask(client.content.Abort, content_pb2.AbortRequest(ref=ref))
        client.collect()
        assert list(ingests.iterdir()) == []


# --- the database -----------------------------------------------------------------------------------------------------


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def inner_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * PAGE)
        file.write(random.Random(2).randbytes(path.stat().st_size - 2 * PAGE))


def first_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(random.Random(3).randbytes(PAGE))


def flipped(data: bytes, numbers: random.Random) -> bytes:
    """The same with some bits turned over."""
    changed = bytearray(data)
    pages = len(data) // PAGE
    somewhere = numbers.randrange(pages)
    for _ in range(numbers.choice((1, 1, 8, 64))):
        page = numbers.choice((somewhere, numbers.randrange(4), numbers.randrange(pages)))
        changed[page * PAGE + numbers.randrange(numbers.choice((64, 512, PAGE)))] ^= 1 << numbers.randrange(8)
    return bytes(changed)


def odd_image() -> images_pb2.CreateImageRequest:
    return images_pb2.CreateImageRequest(image=images_pb2.Image(name="new", target=EMPTY))


def asked(daemon: Daemon) -> set[str]:
    """The codes of calls that read or write much of the metadata."""
    with daemon.channel() as channel:
        client = Client(channel, "ns")
        calls = (
            (client.images.List, images_pb2.ListImagesRequest()),
            (client.content.List, content_pb2.ListContentRequest()),
            (client.images.Create, odd_image()),
            (client.leases.Create, leases_pb2.CreateRequest(id="collect")),
        )
        return {client.fails(call, request)[0] for call, request in calls}


def wait_for_a_word(daemon: Daemon, process: subprocess.Popen[bytes]) -> None:
    """Wait until it is up or has ended."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and "moored is up" not in daemon.text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


DAMAGES: dict[str, Callable[[Daemon], object]] = {
    "127 empty": lambda daemon: os.truncate(database(daemon), 0),
    "127 no file": lambda daemon: database(daemon).unlink(),
    "127 no folder": lambda daemon: shutil.rmtree(metadata(daemon)),
    "127 new": lambda daemon: shutil.rmtree(metadata(daemon) / "environment"),
    "127 cut": lambda daemon: os.truncate(database(daemon), 3 * PAGE),
    "128 garbage": lambda daemon: garbage(database(daemon)),
    "129 first page": lambda daemon: first_page(database(daemon)),
    "130 inner pages": lambda daemon: inner_pages(database(daemon)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_daemon_does_not_start_on_damaged_metadata_and_touches_nothing(daemon: Daemon, damage: str) -> None:
    copy = daemon.folder / "copy"
    shutil.copytree(metadata(daemon), copy)
    before = stored(daemon)
    DAMAGES[damage](daemon)
    damaged = database(daemon).read_bytes() if database(daemon).exists() else b""

    for _ in range(2):
        status, log = daemon.fails_to_start()

        assert status == 1, log
        assert "restore the folder from a copy" in log
        assert str(metadata(daemon)) in log
        assert stored(daemon) == before
        if damaged:
            assert database(daemon).read_bytes() == damaged
        daemon.log.unlink()
    shutil.rmtree(metadata(daemon))
    copy.rename(metadata(daemon))
    assert len(whole(daemon)) == 50


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_flipped_bits_end_the_start_with_a_reason_or_harm_only_what_they_hit(daemon: Daemon, part: int) -> None:
    """One bit, or some of one page or of all: each start works, or says that the metadata is damaged."""
    whole_file = database(daemon).read_bytes()
    for seed in range(part * 6, part * 6 + 6):
        database(daemon).write_bytes(flipped(whole_file, random.Random(seed)))
        daemon.log.unlink(missing_ok=True)
        process = daemon.spawn()
        wait_for_a_word(daemon, process)

        if process.poll() is None:
            assert "OK" in asked(daemon), f"seed {seed}:\n{daemon.text()}"
            assert daemon.stop() == 0, f"seed {seed}:\n{daemon.text()}"
        else:
            assert process.returncode == 1, f"seed {seed}: {process.returncode}\n{daemon.text()}"
            assert "restore the folder from a copy" in daemon.text(), f"seed {seed}:\n{daemon.text()}"
            assert str(metadata(daemon)) in daemon.text()
        # Nothing that nobody expected ended it, and no plugin failed but by saying what is damaged.
        lines = daemon.text().splitlines()
        failed = [line for line in lines if 'msg="plugin failed"' in line]
        assert not any(line.startswith(("Traceback", "Fatal Python error")) for line in lines), f"seed {seed}"
        assert all('reason="DataLoss: ' in line for line in failed), f"seed {seed}:\n{daemon.text()}"


def test_129_last_transaction_whose_meta_page_is_lost_has_not_been(daemon: Daemon) -> None:
    """The older one of the two pages shows the database as it was before, as after a power cut."""
    with database(daemon).open("r+b") as file:
        numbers = [struct.unpack("=Q", os.pread(file.fileno(), 8, page * PAGE + TRANSACTION))[0] for page in range(2)]
        newest = numbers.index(max(numbers))
        os.pwrite(file.fileno(), struct.pack("=Q", 0), newest * PAGE + TRANSACTION)

    assert set(whole(daemon)) >= {f"i{number}" for number in range(49)}
    assert abs(numbers[0] - numbers[1]) == 1
