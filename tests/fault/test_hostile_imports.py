"""The catalogue's hostile archives (rows 34 to 56) imported by the daemon itself, asked by the project's own client.

No program of containerd is needed: the archive goes over a stream to the transfer service.
"""

from __future__ import annotations

import base64
import json
import os
import tarfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping

import pytest

from daemons import Daemon
from fault.load_images import MANIFEST, Blob, described
from fault.test_daemon_disks import NOTHING, left
from fault.test_hostile_calls import Client as Caller
from fault.test_hostile_calls import resident
from fault.test_hostile_images import BASE, GOOD, PLAIN, SERVED, archive, chained, indexed, layout, manifest_of
from moored.api.client.sync import Client
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound, Unknown

SECONDS = 20.0
MEMORY = 128 << 20

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images")]


def good() -> bytes:
    return archive(layout(manifest_of(GOOD, PLAIN), [GOOD, PLAIN]))


def large_index(size: int) -> Iterator[bytes]:
    """An archive whose index.json has that many bytes, made as it is read."""
    info = tarfile.TarInfo("index.json")
    info.size = size
    yield archive({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'})[:1024]
    yield info.tobuf(tarfile.USTAR_FORMAT)
    for _ in range(size >> 20):
        yield b" " * (1 << 20)
    yield bytes(10240)


def inline(data: str = "") -> bytes:
    """An index that brings along what it says of its manifest, by default the truth."""
    manifest = Blob(MANIFEST, json.dumps(manifest_of(GOOD, PLAIN)).encode())
    told = data or base64.b64encode(manifest.data).decode()
    return indexed([{**described(manifest), "data": told}], [GOOD, PLAIN, manifest])


def deep(levels: int = 1_000_000) -> bytes:
    """Documents that are what they should be but for one field, which nobody knows and which never ends."""
    document = json.dumps(manifest_of(GOOD, PLAIN))[:-1].encode()
    return archive(layout(document + b', "odd": ' + b"[" * levels + b"]" * levels + b"}", [GOOD, PLAIN]))


ROWS: Mapping[str, Callable[[], bytes | Iterator[bytes]]] = {
    **SERVED,
    "43 inline data that is no base64": lambda: inline("?"),
    "45 index.json of 9 MiB": lambda: large_index(9 << 20),
    "45 index.json of 300 MiB": lambda: large_index(300 << 20),
    "46 deep json in a field": deep,
    "47 chain of 17 indexes": lambda: chained(17),
    "48 24 levels that double": lambda: chained(24, width=2),
}
ERRORS: Mapping[str, type[MooredError]] = {
    "36 wrong": FailedPrecondition,
    "37": FailedPrecondition,
    "34": FailedPrecondition,
    "38": FailedPrecondition,
    "39": NotFound,
    "42 absent config": NotFound,
    "43 inline data of another digest": FailedPrecondition,
    "53": NotFound,
    "56 layout of version 9": InvalidArgument,
    "56": Unknown,
}
"""The class of the error, by how the row begins; InvalidArgument for the others."""


def error_of(row: str) -> type[MooredError]:
    return next((kind for start, kind in ERRORS.items() if row.startswith(start)), InvalidArgument)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("d")) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Generator[Client]:
    with Client(str(daemon.socket), namespace="default") as client:
        yield client


def emptied(daemon: Daemon) -> None:
    """Remove all images; assert that nothing is left then."""
    with daemon.channel() as channel:
        caller = Caller(channel, "default")
        for image in caller.ask(caller.images.List, images_pb2.ListImagesRequest()).images:
            caller.ask(caller.images.Delete, images_pb2.DeleteImageRequest(name=image.name))
        deadline = time.monotonic() + 5
        caller.collect()
        while left(daemon) != NOTHING and time.monotonic() < deadline:
            caller.collect()
        assert left(daemon) == NOTHING
        assert list(caller.ask(caller.leases.List, leases_pb2.ListRequest()).leases) == []


def taken(client: Client, source: bytes | Iterator[bytes], name: str = "") -> list[str]:
    """The names of the images that an import by the daemon made; `name` is for the archive as a whole."""
    chunks = [source] if isinstance(source, bytes) else source
    return [image.name for image in client.import_archive(chunks, name=name, prefix=BASE, local=False)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", ROWS)
def test_broken_image_is_refused_at_import_and_leaves_nothing(daemon: Daemon, client: Client, row: str) -> None:
    process = daemon.process
    assert process is not None
    source = ROWS[row]()
    before, began = resident(daemon), time.monotonic()

    with pytest.raises(error_of(row)) as raised:
        taken(client, source)

    assert type(raised.value) is error_of(row)
    assert time.monotonic() - began < SECONDS
    assert resident(daemon) - before < MEMORY
    assert str(daemon.root) not in str(raised.value)
    emptied(daemon)
    assert len(taken(client, good())) == 1
    emptied(daemon)
    assert process.poll() is None
    assert "Traceback" not in daemon.text()


def test_48_indexes_that_double_within_the_depth_are_read_once_each(daemon: Daemon, client: Client) -> None:
    """2 ** 12 ways lead to the image at the bottom, over 12 indexes."""
    began = time.monotonic()

    names = taken(client, chained(12, width=2), f"{BASE}:all")

    assert time.monotonic() - began < SECONDS
    assert names == [f"{BASE}:all"]
    assert len(left(daemon)["blobs"]) == len({"layer", "config", "manifest", "index.json"}) + 12
    emptied(daemon)


def test_43_inline_data_of_its_digest_is_taken(daemon: Daemon, client: Client) -> None:
    assert taken(client, inline(), f"{BASE}:all") == [f"{BASE}:all"]
    emptied(daemon)
