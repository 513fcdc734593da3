"""What a power cut leaves of a tree that was made durable, by itself or with all of its file system."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from moored.kernel.workers import Stop
from moored.plugins.snapshots.durable import MOST, WORTH, Durability, unwritten_bytes
from moored.plugins.snapshots.tree import FOLDER
from powercut import Disk, disk_in, needs_disk

pytestmark = needs_disk


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Disk]:
    with disk_in(tmp_path) as made:
        yield made


def durability(tmp_path: Path, unwritten: int) -> Durability:
    """One on a host with so many unwritten bytes, which has done its first tree."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemFree:  1 kB\nDirty:  {unwritten >> 10} kB\nWriteback:  0 kB\nWritebackTmp:  7 kB\n")
    made = Durability(meminfo)
    give(made, tmp_path / "disk" / "lost+found")
    return made


def give(one: Durability, top: Path) -> None:
    fds = [os.open(path, FOLDER) for path in (top, top.parent)]
    try:
        one.give(fds[0], sum(1 for _ in top.rglob("*")) + 1, fds[1:], Stop())
    finally:
        for fd in fds:
            os.close(fd)


def fill(top: Path, files: int = 4) -> dict[str, bytes]:
    """Files at two depths; what was written, by path."""
    (top / "below" / "deeper").mkdir(parents=True)
    written = {}
    for number in range(files):
        name = f"{('', 'below/', 'below/deeper/')[number % 3]}{number}"
        written[name] = os.urandom(5000)
        (top / name).write_bytes(written[name])
    return written


def left_of(disk: Disk, name: str, wanted: dict[str, bytes]) -> bool:
    """Whether all of a tree is there after a power cut now."""
    with disk.mounted(disk.cut()) as place:
        return all(
            (place / name / path).is_file() and (place / name / path).read_bytes() == data
            for path, data in wanted.items()
        )


def test_small_tree_is_durable_and_nobody_else_is_waited_for(tmp_path: Path, disk: Disk) -> None:
    one = durability(tmp_path, 1 << 30)
    others = fill(tmp_path / "disk" / "others")
    wanted = fill(tmp_path / "disk" / "tree")
    os.setxattr(tmp_path / "disk" / "tree" / "0", "user.k", b"v")
    (tmp_path / "disk" / "tree" / "0").chmod(0o4711)
    give(one, tmp_path / "disk" / "tree")
    copy = disk.cut()
    with disk.mounted(copy) as place:
        first = place / "tree" / "0"
        assert first.stat().st_mode & 0o7777 == 0o4711
        assert os.getxattr(first, "user.k") == b"v"
    assert left_of(disk, "tree", wanted)
    assert not left_of(disk, "others", others)


@pytest.mark.parametrize("why", ["quiet", "many", "link", "first"])
def test_other_trees_are_durable_with_all_that_is_there(tmp_path: Path, disk: Disk, why: str) -> None:
    inodes = 7  # four files, three folders
    one = durability(tmp_path, inodes * WORTH - 1024 if why == "quiet" else 1 << 30)
    if why == "first":
        one = Durability(tmp_path / "meminfo")
    others = fill(tmp_path / "disk" / "others")
    wanted = fill(tmp_path / "disk" / "tree", MOST + 1 if why == "many" else 4)
    if why == "link":
        (tmp_path / "disk" / "tree" / "link").symlink_to("0")
    give(one, tmp_path / "disk" / "tree")
    assert left_of(disk, "tree", wanted)
    assert left_of(disk, "others", others)


def test_tree_with_a_pipe_is_not_waited_for(tmp_path: Path, disk: Disk) -> None:
    one = durability(tmp_path, 1 << 30)
    wanted = fill(tmp_path / "disk" / "tree")
    os.mkfifo(tmp_path / "disk" / "tree" / "pipe")
    give(one, tmp_path / "disk" / "tree")
    assert left_of(disk, "tree", wanted)


def test_unwritten_bytes_are_what_is_dirty_or_on_its_way() -> None:
    assert unwritten_bytes(b"MemTotal: 9 kB\nDirty:     12 kB\nWriteback:   3 kB\nWritebackTmp: 5 kB\n") == 15 << 10
    assert unwritten_bytes(b"MemTotal: 9 kB\n") == 0
    assert unwritten_bytes(Path("/proc/meminfo").read_bytes()) >= 0
