"""The catalogue of hostile layers (rows 1 to 35) through a running daemon; what each does is in `test_layers`."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Generator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from daemons import Daemon
from fault.load_checks import collected
from fault.load_images import Blob
from fault.load_writers import Client, connected
from fault.test_daemon_disks import NOTHING, end, lease, left
from fault.test_layers import CONFINED, REFUSED, folder, symlink
from moored.api.services.diff.v1 import diff_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2
from moored.api.types.descriptor_pb2 import Descriptor
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.diff import LAYER, LAYER_GZIP
from unit.diff.world import END, block, file, pax_of, record, tree

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="unpacks layers")]

SNAPSHOTTER = "overlayfs"
CONFIG = """
version = 4
[plugins."io.containerd.differ.v1.walking"]
max_layer_bytes = 67108864
max_layer_entries = 200000
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("d"), CONFIG) as running:
        yield running


@pytest.fixture
def canary(tmp_path: Path) -> Generator[Path]:
    """A folder of the host that must stay as it is."""
    place = tmp_path / "canary"
    (place / "sub").mkdir(parents=True)
    (place / "file").write_text("alive")
    (place / "file").chmod(0o600)
    before = tree(place)
    yield place
    assert tree(place) == before


async def unpack(client: Client, blobs: list[Blob]) -> tuple[str, str]:
    """How it ends to unpack layers on each other, as clients do; (OK, the last one's diff id) where all works."""
    parent, digest = "", ""
    for number, blob in enumerate(blobs):
        await client.store(blob)
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=f"k{number}", parent=parent)
        mounts = (await client.call("snapshots", "Prepare", request)).mounts
        apply = diff_pb2.ApplyRequest(diff=blob.descriptor, mounts=mounts)
        try:
            digest = (await client.call("diff", "Apply", apply)).applied.digest
        except grpc.aio.AioRpcError as error:
            return error.code().name, str(error.details())
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name=f"c{number}", key=f"k{number}")
        await client.call("snapshots", "Commit", commit)
        parent = f"c{number}"
    return "OK", digest


def outcome(daemon: Daemon, *blobs: Blob) -> tuple[str, str]:
    """Unpack under a lease, end it, and see that nothing is left and the daemon the same."""
    process = daemon.process
    assert process is not None

    async def go() -> tuple[str, str]:
        async with connected(daemon.socket) as channel:
            client = Client(channel, "ns")
            try:
                return await unpack(await lease(client, "l"), list(blobs))
            finally:
                await end(client, "l")
                await collected(client)

    found = asyncio.run(go())
    assert process.poll() is None
    assert left(daemon) == NOTHING
    assert str(daemon.folder) not in found[1]
    assert "Traceback" not in daemon.text()
    return found


@pytest.mark.parametrize("row", CONFINED)
def test_layer_is_confined_and_leaves_nothing(daemon: Daemon, canary: Path, row: str) -> None:
    layers, _ = CONFINED[row]

    code, _ = outcome(daemon, *(Blob(LAYER, data) for data in layers(canary)))

    # An overlay's upper folder cannot tell what a layer removes of what it brought itself.
    assert code in ("OK", "INVALID_ARGUMENT")


@pytest.mark.parametrize("row", REFUSED)
def test_layer_is_refused_and_leaves_nothing(daemon: Daemon, canary: Path, row: str) -> None:
    layer, kind, text = REFUSED[row]

    code, told = outcome(daemon, Blob(LAYER, layer(canary)))

    assert code == ("INVALID_ARGUMENT" if kind is InvalidArgument else "UNKNOWN")
    assert text in told
    assert outcome(daemon, Blob(LAYER, file(b"good") + END))[0] == "OK"


def test_01_to_05_upper_layers_do_not_leave_through_links_of_lower_ones(daemon: Daemon, canary: Path) -> None:
    below = symlink(b"s", canary) + symlink(b"d", canary) + END
    above = file(b"s/file", b"dead") + folder(b"d/") + file(b"d/file", b"dead") + file(b"s/.wh.file") + END

    assert outcome(daemon, Blob(LAYER, below), Blob(LAYER, above))[0] in ("OK", "INVALID_ARGUMENT")


def test_16_trusted_attributes_of_a_layer_are_not_set(daemon: Daemon) -> None:
    marks = {
        b"SCHILY.xattr.trusted.overlay.opaque": b"y",
        b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
        b"SCHILY.xattr.user.overlay.opaque": b"y",
    }
    layer = pax_of(marks) + folder(b"d/") + END

    async def go() -> list[str]:
        async with connected(daemon.socket) as channel:
            client = await lease(Client(channel, "ns"), "l")
            assert (await unpack(client, [Blob(LAYER, layer)]))[0] == "OK"
            request = snapshots_pb2.ViewSnapshotRequest(snapshotter=SNAPSHOTTER, key="v", parent="c0")
            (mount,) = (await client.call("snapshots", "View", request)).mounts
            names = os.listxattr(Path(mount.source) / "d")
            await end(Client(channel, "ns"), "l")
            return names

    assert [name for name in asyncio.run(go()) if name.startswith("trusted.")] == []


@pytest.mark.parametrize("size", [900_000, 2_000_000])
def test_21_extended_headers_have_a_cap(daemon: Daemon, size: int) -> None:
    layer = file(b"PaxHeaders/x", record(b"comment", b"x" * size), type=b"x") + file(b"f", b"x") + END

    code, _ = outcome(daemon, Blob(LAYER, layer))

    assert code == ("OK" if size < 1 << 20 else "UNKNOWN")


def test_23_sparse_file_is_charged_with_its_whole_size(daemon: Daemon) -> None:
    sparse = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"4294967296"}
    layer = pax_of(sparse) + file(b"s", b"1\n0\n3\n".ljust(512, b"\0") + b"abc") + END

    assert outcome(daemon, Blob(LAYER, layer))[0] == "RESOURCE_EXHAUSTED"


def test_31_compressed_bomb_stops_at_the_budget(daemon: Daemon) -> None:
    bomb = gzip.compress(block(b"f", size=1 << 30) + bytes(1 << 28), 1)

    assert outcome(daemon, Blob(LAYER_GZIP, bomb))[0] == "RESOURCE_EXHAUSTED"


def test_34_unknown_media_type_is_refused(daemon: Daemon) -> None:
    code, text = outcome(daemon, Blob("application/x-odd", file(b"f") + END))

    assert (code, "no processor for media-type" in text) == ("UNKNOWN", True)


def test_38_blob_of_another_size_than_described_is_refused(daemon: Daemon) -> None:
    blob = Blob(LAYER, file(b"f") + END)
    for size in (1, len(blob.data) + 1, 10**12):
        wrong = Described(LAYER, blob.data, size)
        assert outcome(daemon, wrong)[0] == "FAILED_PRECONDITION"


class Described(Blob):
    """A blob whose descriptor has another size."""

    def __init__(self, media_type: str, data: bytes, size: int) -> None:
        super().__init__(media_type, data)
        object.__setattr__(self, "size", size)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=getattr(self, "size"))  # noqa: B009
