"""The catalogue of hostile images and archives (rows 36 to 56) brought by real clients, and by hand where these refuse.

Clients of old unpack images themselves and see most faults first; what counts is what stays behind in the daemon.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemons import Daemon
from fault.load_images import CONFIG as CONFIG_TYPE
from fault.load_images import MANIFEST, Blob, base_layer, described, digest_of
from fault.test_daemon_disks import NOTHING, left
from fault.test_hostile_calls import Client, resident
from moored.api.services.content.v1 import content_pb2
from moored.api.services.diff.v1 import diff_pb2
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2
from moored.api.types.descriptor_pb2 import Descriptor
from moored.kernel.ports.diff import LAYER
from peers import CTR, collect_garbage, ctr

INDEX = "application/vnd.oci.image.index.v1+json"
CTRS = [path for path in (CTR, *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)) if path]
BASE = "docker.io/test/image"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images"),
]
by_ctr = [pytest.mark.peer, pytest.mark.skipif(not CTRS, reason="needs ctr")]

Members = Mapping[str, bytes]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("d")) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Generator[Client]:
    with daemon.channel() as channel:
        yield Client(channel, "ns")


def archive(members: Members, links: Mapping[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            made.addfile(info)
    return out.getvalue()


def layout(manifest: Any, blobs: list[Blob], *, annotation: str = "latest") -> Members:
    """An OCI layout whose index names a manifest (a dict, or bytes as they are)."""
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    top = Blob(MANIFEST, data)
    entry = {**described(top), "annotations": {"org.opencontainers.image.ref.name": annotation}}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return files | {f"blobs/sha256/{blob.digest.partition(':')[2]}": blob.data for blob in (*blobs, top)}


def config_of(*diff_ids: str) -> Blob:
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    return Blob(CONFIG_TYPE, json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode())


def manifest_of(config: Blob, *layers: Any, **more: Any) -> dict[str, Any]:
    made = [described(layer) if isinstance(layer, Blob) else layer for layer in layers]
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": described(config), "layers": made, **more}


TAR = base_layer()
PLAIN = Blob(TAR.blob.media_type, TAR.blob.data)
GOOD = config_of(TAR.diff_id)


def sized(blob: Blob, size: int) -> dict[str, Any]:
    return {**described(blob), "size": size}


IMAGES: dict[str, Callable[[], bytes]] = {
    "36 wrong diff id": lambda: _image(config_of(digest_of(b"other")), PLAIN),
    "36 malformed diff id": lambda: _image(config_of("sha256:../../x"), PLAIN),
    "37 more diff ids than layers": lambda: _image(config_of(TAR.diff_id, TAR.diff_id), PLAIN),
    "39 absent layer": lambda: archive(layout(manifest_of(GOOD, Blob(LAYER, b"not there")), [GOOD])),
    "41 layer digest with dots": lambda: _image(GOOD, {**described(PLAIN), "digest": "sha256:../../../etc/passwd"}),
    "41 layer digest of md5": lambda: _image(GOOD, {**described(PLAIN), "digest": "md5:" + "a" * 32}),
    "42 absent config": lambda: archive(layout(manifest_of(Blob(CONFIG_TYPE, b"{}"), PLAIN), [PLAIN])),
    "44 large manifest.json": lambda: archive({"manifest.json": b" " * (30 << 20)}),
    "46 deep json": lambda: archive(layout(b"[" * 1_000_000, [])),
    "53 docker archive with links": lambda: _docker({"layer.tar": "../../etc/passwd"}, "config.json"),
    "53 docker archive with a loop of links": lambda: _docker({"layer.tar": "a", "a": "layer.tar"}, "config.json"),
    "53 docker archive with a config outside": lambda: _docker({}, "../../../etc/passwd"),
    "54 tag that is a path": lambda: _docker({}, "config.json", tag="../../x"),
    "56 empty archive": lambda: b"",
    "56 zeros": lambda: bytes(10240),
    "56 garbage": lambda: os.urandom(10240),
    "56 layout of version 9": lambda: archive({"oci-layout": b'{"imageLayoutVersion": "9.0.0"}', "index.json": b"{}"}),
}
"""What an import fails on, whoever sees it."""
SERVED: dict[str, Callable[[], bytes]] = {
    **IMAGES,
    "34 layer of an unknown type": lambda: _image(GOOD, {**described(PLAIN), "mediaType": "application/x-odd"}),
    "38 layer that is shorter": lambda: _image(GOOD, sized(PLAIN, len(PLAIN.data) - 1)),
    "38 layer that is longer": lambda: _image(GOOD, sized(PLAIN, len(PLAIN.data) + 1)),
    "38 layer of 10**12 bytes": lambda: _image(GOOD, sized(PLAIN, 10**12)),
    "42 config that is a layer": lambda: archive(layout(manifest_of(PLAIN, PLAIN), [PLAIN])),
    "42 no layers": lambda: archive(layout({**manifest_of(GOOD), "layers": None}, [GOOD])),
    "42 schema version 99": lambda: archive(layout({**manifest_of(GOOD, PLAIN), "schemaVersion": 99}, [GOOD, PLAIN])),
    "43 inline data of another digest": lambda: indexed([{**described(Blob(MANIFEST, b"{}")), "data": "W10="}], []),
    "45 large index.json": lambda: archive(
        {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": b" " * (40 << 20)}
    ),
    "47 chain of indexes": lambda: chained(300),
    "50 5000 equal layers": lambda: _image(config_of(*[TAR.diff_id] * 5000), *[PLAIN] * 5000),
    "52 50000 layers of a docker archive": lambda: _docker({}, "config.json", layers=50_000),
}
"""What the daemon itself refuses where it imports."""


def indexed(entries: list[dict[str, Any]], blobs: list[Blob]) -> bytes:
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return archive(files | {f"blobs/sha256/{blob.digest.partition(':')[2]}": blob.data for blob in blobs})


def chained(levels: int, width: int = 1) -> bytes:
    """Indexes that each name the one below `width` times, an image at the bottom."""
    blobs = [PLAIN, GOOD, Blob(MANIFEST, json.dumps(manifest_of(GOOD, PLAIN)).encode())]
    for _ in range(levels):
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(blobs[-1])] * width}
        blobs.append(Blob(INDEX, json.dumps(index).encode()))
    return indexed([described(blobs[-1])], blobs)


def _image(config: Blob, *layers: Any) -> bytes:
    return archive(layout(manifest_of(config, *layers), [config, PLAIN]))


def _docker(links: Mapping[str, str], config: str, tag: str = f"{BASE}:latest", layers: int = 1) -> bytes:
    manifest = json.dumps([{"Config": config, "RepoTags": [tag], "Layers": ["layer.tar"] * layers}]).encode()
    members = {"manifest.json": manifest, "config.json": GOOD.data}
    if "layer.tar" not in links:
        members["layer.tar"] = b"no tar"
    return archive(members, links)


def imported(binary: str, daemon: Daemon, file: Path, *, served: bool = False) -> tuple[bool, str]:
    """Whether `ctr import` of a file worked, and what it said; `served` lets the daemon do it, where the client can."""
    local = (
        ["--local"]
        if not served and "--local" in ctr(daemon.socket, "images", "import", "--help", binary=binary)
        else []
    )
    words = ["images", "import", *local, "--base-name", BASE, str(file)]
    try:
        return True, ctr(daemon.socket, *words, binary=binary)
    except AssertionError as error:
        return False, str(error)


def emptied(daemon: Daemon) -> None:
    """Remove all images; assert that nothing is left then."""
    with daemon.channel() as channel:
        client = Client(channel, "default")
        for image in client.ask(client.images.List, images_pb2.ListImagesRequest()).images:
            client.ask(client.images.Delete, images_pb2.DeleteImageRequest(name=image.name))
    collect_garbage(daemon.socket)
    deadline = time.monotonic() + 5
    while left(daemon) != NOTHING and time.monotonic() < deadline:
        collect_garbage(daemon.socket)
    assert left(daemon) == NOTHING
    assert ctr(daemon.socket, "leases", "ls", "-q").split() == []


@pytest.fixture(params=CTRS or ["ctr"])
def binary(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("row", IMAGES)
@pytest.mark.peer
@pytest.mark.skipif(not CTRS, reason="needs ctr")
def test_broken_image_is_refused_and_leaves_nothing(daemon: Daemon, tmp_path: Path, binary: str, row: str) -> None:
    process = daemon.process
    assert process is not None
    (tmp_path / "bad.tar").write_bytes(IMAGES[row]())
    (tmp_path / "good.tar").write_bytes(archive(layout(manifest_of(GOOD, PLAIN), [GOOD, PLAIN])))

    worked, said = imported(binary, daemon, tmp_path / "bad.tar")

    # Old clients import what cannot be run; nothing of it may be taken for unpacked.
    assert not worked or "no image" in said or "42" in row or "39" in row, said
    emptied(daemon)
    assert imported(binary, daemon, tmp_path / "good.tar")[0]
    emptied(daemon)
    assert process.poll() is None
    assert "Traceback" not in daemon.text()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", SERVED)
@pytest.mark.peer
@pytest.mark.skipif(not CTRS, reason="needs ctr")
def test_daemon_that_imports_refuses_broken_images(daemon: Daemon, tmp_path: Path, binary: str, row: str) -> None:
    if "--local" not in ctr(daemon.socket, "images", "import", "--help", binary=binary):
        pytest.skip("this client unpacks by itself")
    process = daemon.process
    assert process is not None
    (tmp_path / "bad.tar").write_bytes(SERVED[row]())
    (tmp_path / "good.tar").write_bytes(archive(layout(manifest_of(GOOD, PLAIN), [GOOD, PLAIN])))
    before, began = resident(daemon), time.monotonic()

    worked, said = imported(binary, daemon, tmp_path / "bad.tar", served=True)

    assert not worked, said
    assert time.monotonic() - began < 20
    assert resident(daemon) - before < 128 << 20
    assert str(daemon.root) not in said
    emptied(daemon)
    assert imported(binary, daemon, tmp_path / "good.tar", served=True)[0]
    emptied(daemon)
    assert process.poll() is None
    assert "Traceback" not in daemon.text()


@pytest.mark.peer
@pytest.mark.skipif(not CTRS, reason="needs ctr")
def test_48_indexes_that_double_at_each_level_are_read_once(daemon: Daemon, tmp_path: Path, binary: str) -> None:
    (tmp_path / "dag.tar").write_bytes(chained(10, width=2))
    began = time.monotonic()

    imported(binary, daemon, tmp_path / "dag.tar", served=True)

    assert time.monotonic() - began < 20
    emptied(daemon)


@pytest.mark.peer
@pytest.mark.skipif(not CTRS, reason="needs ctr")
def test_55_name_of_an_annotation_is_never_a_path(daemon: Daemon, tmp_path: Path, binary: str) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    for annotation in (f"../../../../../../..{canary}", "a b", "n" * 2000):
        data = archive(layout(manifest_of(GOOD, PLAIN), [GOOD, PLAIN], annotation=annotation))
        (tmp_path / "odd.tar").write_bytes(data)
        imported(binary, daemon, tmp_path / "odd.tar")
        emptied(daemon)
    assert canary.read_text() == "alive"


# --- by hand ----------------------------------------------------------------------------------------------------------


def store(client: Client, blob: Blob) -> None:
    labels = {"containerd.io/gc.root": "x"}
    code, text = client.write({"ref": blob.digest}, {"action": 2, "data": blob.data, "labels": labels})
    assert code in ("OK", "ALREADY_EXISTS"), text


def test_39_absent_layer_is_not_found(client: Client) -> None:
    absent = Blob(LAYER, b"nobody has stored this")
    assert client.prepare("k") == ("OK", "")
    mounts = client.ask(client.snapshots.Mounts, snapshots_pb2.MountsRequest(snapshotter="native", key="k")).mounts

    found = client.fails(client.diff.Apply, diff_pb2.ApplyRequest(diff=absent.descriptor, mounts=mounts))

    assert found[0] == "NOT_FOUND"
    client.ask(client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter="native", key="k"))


def test_40_unpacked_layer_of_another_namespace_is_not_given_away(daemon: Daemon, client: Client) -> None:
    """Whoever only knows a chain id gets an empty snapshot, to be filled with the layer that he must have."""
    secret = "sha256:" + hashlib.sha256(b"secret").hexdigest()
    wanted = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter="overlayfs", key="k", labels={"containerd.io/snapshot.ref": secret}
    )
    (mount,) = client.ask(client.snapshots.Prepare, wanted).mounts
    (Path(mount.source) / "secret").write_text("secret")
    commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", name=secret, key="k")
    client.ask(client.snapshots.Commit, commit)
    with daemon.channel() as channel:
        other = Client(channel, "other")
        (mount,) = other.ask(other.snapshots.Prepare, wanted).mounts
        found = sorted(Path(mount.source).iterdir())
        stat = other.fails(other.snapshots.Stat, snapshots_pb2.StatSnapshotRequest(snapshotter="overlayfs", key=secret))
        other.ask(other.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key="k"))
    client.ask(client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=secret))

    assert found == []
    assert stat[0] == "NOT_FOUND"


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "md5:" + "a" * 32, "sha256:" + "A" * 64, "", "x"])
def test_41_malformed_digests_are_refused_before_anything_is_looked_up(client: Client, digest: str) -> None:
    descriptor = Descriptor(media_type=LAYER, digest=digest, size=1)
    calls = {
        "info": (client.content.Info, content_pb2.InfoRequest(digest=digest)),
        "read": (client.content.Read, content_pb2.ReadContentRequest(digest=digest)),
        "delete": (client.content.Delete, content_pb2.DeleteContentRequest(digest=digest)),
        "apply": (client.diff.Apply, diff_pb2.ApplyRequest(diff=descriptor)),
        "image": (
            client.images.Create,
            images_pb2.CreateImageRequest(image=images_pb2.Image(name="i", target=descriptor)),
        ),
    }

    codes = {name: client.fails(call, request)[0] for name, (call, request) in calls.items()}

    assert codes == dict.fromkeys(calls, "INVALID_ARGUMENT")


def test_51_two_hundred_layers_can_be_mounted(client: Client) -> None:
    from moored.kernel.mounts import mounted
    from moored.kernel.ports.mounts import Mount

    parent = ""
    client.ask(client.leases.Create, leases_pb2.CreateRequest(id="l"))
    held = client.under("l")
    for number in range(200):
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"k{number}", parent=parent)
        mounts = client.ask(client.snapshots.Prepare, prepare, held).mounts
        upper = [option.removeprefix("upperdir=") for option in mounts[0].options if option.startswith("upperdir=")]
        folder = Path(upper[0]) if upper else Path(mounts[0].source)
        (folder / f"f{number}").write_text(str(number))
        parent = f"c{number}"
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", name=parent, key=f"k{number}")
        client.ask(client.snapshots.Commit, commit, held)
    top = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="top", parent=parent)
    made = client.ask(client.snapshots.Prepare, top, held).mounts

    with mounted([Mount(type=m.type, source=m.source, options=tuple(m.options)) for m in made]) as folder:
        names = {path.name for path in folder.iterdir()}
        (folder / "new").write_text("new")

    assert names == {f"f{number}" for number in range(200)}
    client.ask(client.leases.Delete, leases_pb2.DeleteRequest(id="l", sync=True))
