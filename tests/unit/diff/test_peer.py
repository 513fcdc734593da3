"""The same layers give the same files in containerd, and layers that we make are good ones to it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.conformance.diff import bind
from moored.kernel.ports.content import read_blob
from moored.kernel.ports.diff import LAYER_GZIP
from unit.diff.world import END, Tree, block, done, file, overlay, pax, pax_of, staged, tree, unpack
from unit.snapshots.test_peer import containerd

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs Debian's containerd"),
]

CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


def folder(name: bytes, **fields: Any) -> bytes:
    return block(name, type=b"5", **{"mode": 0o755, "mtime": 1_600_000_000, **fields})


def link(name: bytes, target: bytes, **fields: Any) -> bytes:
    return block(name, type=b"2", link=target, **fields)


def hard(name: bytes, target: bytes, **fields: Any) -> bytes:
    return block(name, type=b"1", link=target, **fields)


BASE = (
    folder(b"usr/")
    + folder(b"usr/lib/", mode=0o2775, gid=50)
    + file(b"usr/lib/a", b"A" * 3000, mode=0o4755, uid=1, gid=2)
    + link(b"lib", b"usr/lib")
    + file(b"lib/via", b"via")
    + folder(b"tmp/", mode=0o1777)
    + file(b"tmp/x")
    + hard(b"tmp/h", b"usr/lib/a", mode=0o4755, uid=1, gid=2)
    + link(b"abs", b"/usr")
    + file(b"abs/inside")
    + block(b"fifo", type=b"6", mode=0o4640, uid=4)
    + block(b"null", type=b"3", mode=0o666, major=1, minor=3)
    + pax_of({b"SCHILY.xattr.user.foo": b"bar", b"SCHILY.xattr.security.capability": CAPABILITY})
    + file(b"capable", mode=0o755)
    + pax(mtime=b"1500000000.123456789")
    + file(b"nano")
    + folder(b"opaque/")
    + file(b"opaque/old")
    + folder(b"opaque/dir/")
    + file(b"opaque/dir/old")
    + folder(b"gone/")
    + file(b"gone/f")
    + file(b"deep/er/path/f")
    + file(b"twice", b"1")
    + file(b"twice", b"2")
    + folder(b"to-file/")
    + file(b"to-file/x")
    + file(b"to-folder")
    + hard(b"hard-to-link", b"lib")
    + folder(b"kept/", mode=0o700, uid=9, gid=9)
    + file(b"kept/f")
    + file(b"../../escaped")
    + file(b"/absolute")
    + file(b"usr/../dots")
    + link(b"dangling", b"nowhere/at/all")
    + pax(path=b"long/" + b"n" * 200)
    + file(b"x")
    + pax(uid=b"3000000")
    + file(b"owner")
    + END
)
LAYERS = (
    BASE,
    file(b"opaque/.wh..wh..opq")
    + file(b"opaque/new")
    + file(b".wh.gone")
    + file(b"deep/er/.wh.path")
    + file(b"to-file", b"a file now")
    + folder(b"to-folder/", mode=0o711)
    + file(b"to-folder/in")
    + file(b"kept/g")
    + file(b"usr/lib/.wh.a")
    + file(b"lib/new")
    + link(b"tmp/x", b"h")
    + file(b"new/sub/f")
    + file(b".wh.missing")
    + END,
    folder(b"gone/", mode=0o750)
    + file(b"gone/again")
    + file(b"opaque/.wh.new")
    + file(b"kept/h")
    + hard(b"kept/link", b"kept/h")
    + file(b"usr/lib/a", b"back")
    + END,
)


def archive(layers: list[bytes]) -> bytes:
    """An OCI image of gzip layers, as `ctr images import` takes it."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def document(content: dict[str, Any], kind: str) -> dict[str, Any]:
        return put(json.dumps({**content, "schemaVersion": 2}).encode(), kind)

    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}" for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = document({"architecture": "amd64", "os": "linux", "rootfs": rootfs}, "config.v1+json")
    parts = [put(layer, "layer.v1.tar+gzip") for layer in layers]
    manifest = document({"config": config, "layers": parts}, "manifest.v1+json")
    manifest["annotations"] = {"io.containerd.image.name": "example.com/peer:1"}
    manifest["platform"] = {"architecture": "amd64", "os": "linux"}
    files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


@contextmanager
def merged(place: Path, lowers: list[Path]) -> Generator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "overlay", "overlay", f"-olowerdir={':'.join(map(str, lowers))}", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def theirs(place: Path, layers: list[bytes]) -> Tree:
    """What containerd makes of an image."""
    (place / "image.tar").write_bytes(archive(layers))
    seen = place / "theirs"
    seen.mkdir()
    with containerd(place) as socket:
        # the unpack of the oldest containerd wants the platform of the machine
        for command in (
            ["images", "import", "--snapshotter", "overlayfs", "--all-platforms", place / "image.tar"],
            ["images", "mount", "--snapshotter", "overlayfs", "--platform", "linux/amd64", "example.com/peer:1", seen],
        ):
            result = subprocess.run(["ctr", "-a", socket, *command], capture_output=True, text=True, check=False)
            assert not result.returncode, result.stderr
        try:
            return tree(seen)
        finally:
            subprocess.run(["umount", seen], check=True)


def ours(place: Path, layers: list[bytes]) -> Tree:
    """What the differ makes of it, layer on layer as the overlay snapshotter has them."""
    lowers: list[Path] = []

    async def go() -> None:
        async with staged(place) as stage:
            for number, layer in enumerate(layers):
                upper = stage.new_folder(str(number))
                await unpack(stage, layer, overlay(upper, *lowers) if lowers else bind(upper), LAYER_GZIP)
                lowers.insert(0, upper)

    done(go())
    with merged(place / "ours", lowers) as seen:
        return tree(seen)


def without_made_up_times(found: Tree, since: int) -> Tree:
    """Times of folders that no entry of the last layer named are the time of unpacking in containerd, not in ours."""
    return {
        name: (*facts[:3], 0 if facts[0] & 0o170000 == 0o040000 else facts[3], *facts[4:])
        for name, facts in found.items()
        if facts[0] & 0o170000 == 0o040000 or facts[3] < since
    }


def test_same_layers_same_files(tmp_path: Path) -> None:
    layers = [gzip.compress(layer) for layer in LAYERS]
    since = 1_700_000_000 * 10**9
    their, our = theirs(tmp_path, layers), ours(tmp_path, layers)
    assert len(their) > 35
    assert without_made_up_times(our, since) == without_made_up_times(their, since)
    assert our.keys() == their.keys()


def test_layer_of_ours_is_unpacked_by_containerd(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "d/sub").mkdir(parents=True)
    (lower / "d/gone").touch()
    (lower / "d/sub/gone").touch()
    subprocess.run(["cp", "-a", lower, upper], check=True)
    shutil.rmtree(upper / "d/sub")
    (upper / "d/gone").unlink()
    (upper / "d/new").write_bytes(os.urandom(100_000))
    (upper / "d/hard").hardlink_to(upper / "d/new")
    (upper / ("long" * 50)).symlink_to("t" * 200)
    os.chown(upper / "d/new", 3_000_000, 7)
    os.setxattr(upper / "d/new", "security.capability", CAPABILITY)
    for path in (*upper.rglob("*"), *lower.rglob("*")):
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)

    async def go() -> list[bytes]:
        async with staged(tmp_path) as stage:
            blobs = [
                await stage.differ.compare([], bind(lower)),
                await stage.differ.compare(bind(lower), bind(upper)),
            ]
            return [await read_blob(stage.store, blob.digest, 1 << 24) for blob in blobs]

    assert theirs(tmp_path, done(go())) == tree(upper)
