"""Images that other tools make, and what they look like unpacked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from peers import CTR, ctr, needs_containerd

needs_image_tools = [
    *needs_containerd,
    pytest.mark.skipif(not shutil.which("umoci") or not shutil.which("skopeo"), reason="needs umoci and skopeo"),
]
CTRS = [path for path in (CTR, *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)) if path]
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAME = "docker.io/test/image:latest"
BASE = NAME.removesuffix(":latest")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rootfs_of_many_kinds(folder: Path) -> None:
    """Links, devices, odd modes and owners, extended attributes, sparse and long-named files."""
    (folder / "dir").mkdir(parents=True)
    (folder / "dir" / "plain").write_bytes(b"plain")
    os.link(folder / "dir" / "plain", folder / "hard-link")
    (folder / "symlink").symlink_to("/dir/plain")
    (folder / "dir" / "setuid").write_bytes(b"#!")
    os.chown(folder / "dir" / "setuid", 1000, 2000)
    (folder / "dir" / "setuid").chmod(0o4755)
    os.setxattr(folder / "dir" / "setuid", "user.note", b"kept")
    os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(folder / "fifo")
    (folder / ("n" * 200)).write_bytes(b"long name")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    os.utime(folder / "dir" / "plain", (1_000_000_000, 1_234_567_890))
    (folder / "sticky").mkdir(mode=0o777)
    (folder / "sticky").chmod(0o1777)


def layer(*entries: tuple[str, bytes | None]) -> bytes:
    """A tar: (name, content), content None for a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def oci_archive(
    target: Path, layers: list[bytes], media_type: str = LAYER, store: Callable[[bytes], bytes] = bytes
) -> Path:
    """An OCI layout as a tar, each layer of that type and stored as `store` makes it; as it is otherwise."""
    blobs: dict[str, bytes] = {}

    def add(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    made = [add(media_type, store(data)) for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {}}
    described = add("application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "config": described, "layers": made}
    top = add("application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode())
    top["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    with tarfile.open(target, "w") as archive:
        files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index}
        files |= {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target


def umoci_image(folder: Path) -> Path:
    """Two layers by umoci, gzipped."""
    rootfs_of_many_kinds(folder / "files")
    layout = folder / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:latest")
    run("umoci", "insert", "--image", f"{layout}:latest", folder / "files", "/tree")
    run("umoci", "insert", "--image", f"{layout}:latest", "/etc/debian_version", "/tree/dir/version")
    archive = folder / "umoci.tar"
    run("tar", "-C", layout, "-cf", archive, ".")
    return archive


def docker_archive(folder: Path) -> Path:
    """The same, made a docker-archive by skopeo."""
    umoci_image(folder)
    archive = folder / "docker.tar"
    run("skopeo", "copy", f"oci:{folder / 'layout'}:latest", f"docker-archive:{archive}:{NAME}")
    return archive


def whiteouts(folder: Path) -> Path:
    """Removed files and an emptied folder."""
    return oci_archive(
        folder / "whiteouts.tar",
        [
            layer(
                ("gone", b"1"), ("full/", None), ("full/a", b"a"), ("full/b", b"b"), ("kept/", None), ("kept/c", b"c")
            ),
            layer((".wh.gone", b""), ("full/", None), ("full/.wh..wh..opq", b""), ("full/new", b"n")),
            layer(("kept/", None), ("kept/.wh.c", b""), ("gone", b"again")),
        ],
    )


def many_layers(folder: Path) -> Path:
    """128 layers."""
    layers = [layer((f"file-{number}", b"x" * number), ("shared", str(number).encode())) for number in range(128)]
    return oci_archive(folder / "many.tar", layers)


Maker = Callable[[Path], Path]
"""Makes an image's archive in a folder."""
IMAGES: Mapping[str, Maker] = {make.__name__: make for make in (umoci_image, docker_archive, whiteouts, many_layers)}


@dataclass(frozen=True)
class File:
    """All that two unpackings of a file must have in common."""

    kind: tuple[int, ...]
    mtime_ns: int
    content: str
    attributes: dict[str, bytes]


def tree(root: Path) -> dict[str, File]:
    """Every file below root, by its path."""
    found = {}
    for path in sorted(root.rglob("*")):
        info, is_dir = path.lstat(), path.is_dir() and not path.is_symlink()
        content = str(path.readlink()) if path.is_symlink() else ""
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        names = os.listxattr(path, follow_symlinks=False)
        found[str(path.relative_to(root))] = File(
            (
                info.st_mode,
                info.st_uid,
                info.st_gid,
                info.st_rdev,
                *((0, 0) if is_dir else (info.st_size, info.st_nlink)),
            ),
            info.st_mtime_ns,
            content,
            {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
        )
    return found


def without_made_up_times(ours: dict[str, File], theirs: dict[str, File], began: int) -> dict[str, File]:
    """Theirs, with our times for folders that have the time of unpacking there.

    containerd gives it to folders that a later layer writes in without naming them; with us these keep their own.
    """
    return {
        name: replace(file, mtime_ns=ours[name].mtime_ns)
        if name in ours and stat.S_ISDIR(file.kind[0]) and file.mtime_ns >= began
        else file
        for name, file in theirs.items()
    }


def unpacking(*snapshotters: str, version: str = "version = 4\n") -> str:
    """A config by which the daemon unpacks for these snapshotters, as newer clients ask it to."""
    table = '[[plugins."io.containerd.transfer.v1.local".unpack_config]]'
    return version + "".join(f'{table}\nplatform = "linux"\nsnapshotter = "{name}"\n' for name in snapshotters)


def local(binary: str) -> list[str]:
    """The flag by which newer clients do all of an import by themselves, as older ones always do."""
    helped = subprocess.run([binary, "images", "import", "--help"], capture_output=True, text=True, check=True)
    return ["--local"] if "--local" in helped.stdout else []


@contextmanager
def unpacked(address: Path, snapshotter: str, folder: Path) -> Iterator[Path]:
    """The image's root file system, mounted by ctr."""
    folder.mkdir()
    ctr(address, "images", "mount", "--snapshotter", snapshotter, NAME, str(folder))
    try:
        yield folder
    finally:
        run("umount", folder)
