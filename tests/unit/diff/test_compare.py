"""Making layers: what counts as a change, how it is written, and what is left out."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from moored.kernel.conformance.diff import Stage, bind
from moored.kernel.ports.content import read_blob
from moored.kernel.ports.diff import LAYER
from moored.kernel.ports.mounts import Mount
from unit.diff.world import as_root, done, names, overlay, staged, tree

pytestmark = as_root

CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
Members = dict[str, tarfile.TarInfo]


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    root = tmp_path / "lower"
    (root / "d/sub").mkdir(parents=True)
    for name in ("d/a", "d/b", "d/sub/c", "e"):
        (root / name).write_text(name)
    (root / "d/h1").write_text("hard")
    (root / "d/h2").hardlink_to(root / "d/h1")
    (root / "d/link").symlink_to("a")
    for path in (root, *root.rglob("*")):
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)
    return root


@pytest.fixture
def upper(tmp_path: Path, lower: Path) -> Path:
    subprocess.run(["cp", "-a", lower, tmp_path / "upper"], check=True)
    return tmp_path / "upper"


def layer_of(folder: Path, lower: list[Mount] | Path, upper: list[Mount] | Path, **options: object) -> Members:
    """The entries of the difference."""

    async def go() -> bytes:
        async with staged(folder) as stage:
            mounts = [bind(side) if isinstance(side, Path) else side for side in (lower, upper)]
            blob = await stage.differ.compare(*mounts, media_type=LAYER, **options)
            return await read_blob(stage.store, blob.digest, 1 << 24)

    with tarfile.open(fileobj=io.BytesIO(done(go()))) as archive:
        return {member.name: member for member in archive}


def test_equal_trees_have_no_difference(tmp_path: Path, lower: Path, upper: Path) -> None:
    assert layer_of(tmp_path, lower, upper) == {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda u: (u / "d/a").write_text("A"), ["d", "d/a"]),
        (lambda u: (u / "d/a").chmod(0o600), ["d", "d/a"]),
        (lambda u: os.chown(u / "d/a", 5, 5), ["d", "d/a"]),
        (lambda u: os.utime(u / "d/a", (0, 0)), ["d", "d/a"]),
        (lambda u: (u / "d").chmod(0o700), ["d"]),
        (lambda u: os.utime(u / "d", (0, 0)), []),
        (lambda u: os.setxattr(u / "d/a", "security.capability", CAPABILITY), ["d", "d/a"]),
        (lambda u: os.setxattr(u / "d/a", "user.x", b"y"), []),
        (lambda u: (u / "d/a").unlink(), ["d", "d/.wh.a"]),
        (lambda u: shutil.rmtree(u / "d"), [".wh.d"]),
        (lambda u: (shutil.rmtree(u / "d"), (u / "d").write_text("file")), ["d"]),
        (lambda u: ((u / "e").unlink(), (u / "e").mkdir(), (u / "e/x").touch()), ["e", "e/x"]),
        (lambda u: (u / "new/deep").mkdir(parents=True), ["new", "new/deep"]),
        (lambda u: os.mkfifo(u / "fifo"), ["fifo"]),
        (lambda u: ((u / "d/link").unlink(), (u / "d/link").symlink_to("b")), ["d", "d/link"]),
    ],
)
def test_what_counts_as_a_change(tmp_path: Path, lower: Path, upper: Path, change: object, found: list[str]) -> None:
    change(upper)  # type: ignore[operator]
    assert sorted(layer_of(tmp_path, lower, upper)) == found


def test_content_is_compared_where_times_are_whole_seconds(tmp_path: Path, lower: Path, upper: Path) -> None:
    status = (upper / "d/a").stat()
    (upper / "d/a").write_text("X/a")
    os.utime(upper / "d/a", ns=(0, status.st_mtime_ns))
    assert "d/a" in layer_of(tmp_path, lower, upper)


def test_entries_carry_what_they_should(tmp_path: Path, lower: Path, upper: Path) -> None:
    new = upper / "new"
    new.write_text("x")
    os.chown(new, 70_000, 3_000_000)
    new.chmod(0o6711)
    os.setxattr(new, "security.capability", CAPABILITY)
    os.setxattr(new, "user.other", b"left out")
    os.utime(new, ns=(0, 1_600_000_000_900_000_000))
    os.mknod(upper / "dev", stat.S_IFCHR | 0o600, os.makedev(10, 200))
    (upper / ("long" * 60)).touch()
    found = layer_of(tmp_path, lower, upper)
    entry = found["new"]
    assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (0o6711, 70_000, 3_000_000, 1_600_000_000)
    assert (entry.uname, entry.gname) == ("", "")
    assert [key for key in entry.pax_headers if "xattr" in key] == ["SCHILY.xattr.security.capability"]
    assert (found["dev"].devmajor, found["dev"].devminor, found["dev"].type) == (10, 200, tarfile.CHRTYPE)
    assert "long" * 60 in found


def test_sockets_are_left_out(tmp_path: Path, lower: Path, upper: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.open(upper, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{folder}/s")
        os.close(folder)
    assert layer_of(tmp_path, lower, upper) == {}


def test_all_names_of_a_changed_file_are_there(tmp_path: Path, lower: Path, upper: Path) -> None:
    (upper / "z").hardlink_to(upper / "d/h1")
    found = layer_of(tmp_path, lower, upper)
    assert {name: entry.linkname for name, entry in found.items() if entry.islnk()} == {"d/h1": "z", "d/h2": "z"}
    assert found["z"].isreg()


def test_difference_of_overlays(tmp_path: Path, lower: Path) -> None:
    top = tmp_path / "top"
    mounts = overlay(top, lower)
    merged = tmp_path / "merged"
    merged.mkdir()
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", ",".join(mounts[0].options), merged], check=True)
    try:
        (merged / "d/a").unlink()
        (merged / "d/b").write_text("changed")
        shutil.rmtree(merged / "d/sub")
        (merged / "d/sub").mkdir()
        (merged / "d/sub/new").touch()
        (merged / "d/h1").chmod(0o600)
    finally:
        subprocess.run(["umount", merged], check=True)
    quick = layer_of(tmp_path, bind(lower, read_only=True), mounts)
    # with an option that says nothing new the folders below are not seen to be the same
    other = [Mount(type="bind", source=f"{lower}/.", options=("ro", "rbind"))]
    whole = layer_of(tmp_path, other, mounts)
    assert sorted(quick) == sorted(whole)
    assert sorted(quick) == ["d", "d/.wh.a", "d/b", "d/h1", "d/sub", "d/sub/.wh.c", "d/sub/new"]


def test_difference_applied_gives_the_upper_tree(tmp_path: Path, lower: Path, upper: Path) -> None:
    (upper / "d/a").unlink()
    (upper / "n/m").mkdir(parents=True)
    (upper / "n/m/f").write_bytes(os.urandom(3 << 20))
    (upper / "z").hardlink_to(upper / "d/h1")
    for path in (upper, *upper.rglob("*")):
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)

    async def go(stage: Stage) -> Path:
        root = stage.new_folder("root")
        for blob in (
            await stage.differ.compare([], bind(lower)),
            await stage.differ.compare(bind(lower), bind(upper)),
        ):
            await stage.differ.apply(blob, bind(root))
        return root

    async def run() -> Path:
        async with staged(tmp_path) as stage:
            return await go(stage)

    root = done(run())
    assert tree(root) == tree(upper)
    assert names(root) == names(upper)
