"""The catalogue of damaged stores (rows 126 to 130) and of lost ones: what a daemon does about each at its start."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from daemons import Daemon
from fault.test_hostile_calls import OK, Client
from moored.api.services.content.v1 import content_pb2
from moored.api.services.images.v1 import images_pb2

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
def daemon(tmp_path: Path, original: Path) -> Daemon:
    """A daemon with a copy of that root, not started."""
    made = Daemon(tmp_path)
    shutil.copytree(original, made.root)
    return made


def metadata(daemon: Daemon) -> Path:
    return daemon.root / "io.containerd.metadata.v1.bolt"


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


def test_129_last_transaction_whose_meta_page_is_lost_has_not_been(daemon: Daemon) -> None:
    """The older one of the two pages shows the database as it was before, as after a power cut."""
    with database(daemon).open("r+b") as file:
        numbers = [struct.unpack("=Q", os.pread(file.fileno(), 8, page * PAGE + TRANSACTION))[0] for page in range(2)]
        newest = numbers.index(max(numbers))
        os.pwrite(file.fileno(), struct.pack("=Q", 0), newest * PAGE + TRANSACTION)

    assert set(whole(daemon)) >= {f"i{number}" for number in range(49)}
    assert abs(numbers[0] - numbers[1]) == 1
