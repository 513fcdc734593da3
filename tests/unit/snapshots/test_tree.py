from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from moored.kernel import mounts
from moored.kernel.conformance.filetrees import LAYERS, tree
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Usage
from moored.kernel.workers import Stop, Stopped
from moored.plugins.snapshots.native.copy import copy_contents, copy_tree
from moored.plugins.snapshots.tree import FOLDER, Descent, disk_usage, remove_tree
from unit.snapshots.world import image, nothing_left

DEPTH = 1500
"""Deeper than any path may be long, and than descriptors allow."""


def opened(path: Path) -> int:
    return os.open(path, FOLDER)


def measured(path: Path) -> Usage:
    fd = opened(path)
    try:
        return disk_usage(fd, Stop())
    finally:
        os.close(fd)


def removed(path: Path) -> None:
    fd = opened(path.parent)
    try:
        remove_tree(path.name, fd, Stop())
    finally:
        os.close(fd)


def copied(source: Path, target: Path) -> None:
    target.mkdir()
    fds = opened(source), opened(target)
    try:
        copy_tree(*fds, Stop())
    finally:
        for fd in fds:
            os.close(fd)


def deep(top: Path) -> None:
    top.mkdir()
    fd = opened(top)
    for _ in range(DEPTH):
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", FOLDER, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_usage_counts_each_inode_once(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "f").write_bytes(b"x" * 100_000)
    os.link(top / "f", top / "sub/link")
    (top / "sub/to").symlink_to("/etc")
    paths = [top, top / "sub", top / "f", top / "sub/to"]
    assert measured(top) == Usage(sum(path.lstat().st_blocks * 512 for path in paths), 4)


def test_tree_of_any_depth_is_measured_copied_and_removed(tmp_path: Path) -> None:
    deep(tmp_path / "top")
    with nothing_left():
        assert measured(tmp_path / "top").inodes == 2 * DEPTH + 1
        copied(tmp_path / "top", tmp_path / "copy")
        assert measured(tmp_path / "copy").inodes == 2 * DEPTH + 1
        removed(tmp_path / "top")
        removed(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "f").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "to").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept)
    removed(top)
    removed(tmp_path / "link")
    removed(tmp_path / "never there")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "f").read_text() == "x"


@pytest.mark.root
def test_what_is_mounted_in_a_tree_is_not_touched(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "f").write_text("x")
    place = tmp_path / "top/sub/place"
    place.mkdir(parents=True)
    mounts.mount(Mount(type="bind", source=str(kept), options=("rbind",)), place)
    try:
        with pytest.raises(OSError, match=r".*") as caught:
            removed(tmp_path / "top")
        assert caught.value.errno == errno.EXDEV
        assert (kept / "f").read_text() == "x"
        assert measured(tmp_path / "top").inodes == 3
    finally:
        mounts.unmount_all(place)
    removed(tmp_path / "top")
    assert (kept / "f").read_text() == "x"


def test_moved_folder_ends_a_walk(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    fd = opened(tmp_path / "a")
    try:
        with Descent(fd) as descent:
            descent.enter("b")
            descent.enter("c")
            (tmp_path / "a/b/c").rename(tmp_path / "elsewhere/c")
            with pytest.raises(OSError, match=r".*") as caught:
                descent.leave()
            assert caught.value.errno == errno.ESTALE
    finally:
        os.close(fd)


def test_stop_is_seen(tmp_path: Path) -> None:
    stop = Stop()
    stop.set()
    fd = opened(tmp_path)
    (tmp_path / "sub").mkdir()
    try:
        with pytest.raises(Stopped):
            disk_usage(fd, stop)
        with pytest.raises(Stopped):
            remove_tree("sub", fd, stop)
    finally:
        os.close(fd)
    assert (tmp_path / "sub").exists()


@pytest.mark.root
def test_copy_has_all_that_the_original_has(tmp_path: Path) -> None:
    for title, change in LAYERS.items():
        for step in range(2):
            change(step, _made(tmp_path / title))
    (tmp_path / "special files").chmod(0o1711)
    os.chown(tmp_path / "special files", 3, 4)
    os.setxattr(tmp_path / "special files", "user.top", b"v")
    for title in LAYERS:
        source, target = tmp_path / title, tmp_path / f"{title} copy"
        copied(source, target)
        assert tree(target) == tree(source)
        assert _times(target) == _times(source)
    copy = tmp_path / "special files copy"
    assert (stat.S_IMODE(copy.stat().st_mode), copy.stat().st_uid, copy.stat().st_gid) == (0o1711, 3, 4)
    assert os.getxattr(copy, "user.top") == b"v"


def test_holes_stay_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "f").open("wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(128 << 20)
    copied(source, tmp_path / "copy")
    copy = tmp_path / "copy/f"
    assert copy.stat().st_size == 128 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(64 << 20)
        assert file.read(4) == b"end\0"


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _times(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_mtime_ns for path in [top, *top.rglob("*")]}


@pytest.mark.root
def test_contents_are_copied_to_another_file_system_with_their_holes(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    with image(tmp_path / "image", 64 << 20, "mkfs.ext4", "-q", place=tmp_path / "disk") as disk:
        with (tmp_path / "source").open("w+b") as source, (disk / "target").open("w+b") as target:
            source.seek(20 << 20)
            source.write(data)
            source.truncate(40 << 20)
            source.flush()
            copy_contents(source.fileno(), target.fileno(), 40 << 20, Stop())
            target.seek(20 << 20)
            assert target.read(len(data)) == data
        found = (disk / "target").stat()
        assert found.st_size == 40 << 20
        assert found.st_blocks * 512 < 8 << 20
