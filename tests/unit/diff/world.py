"""Layers made by hand, trees compared whole, and a differ to unpack the ones into the others."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog

from moored.kernel.conformance.diff import Stage, bind
from moored.kernel.ports.diff import LAYER
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount
from moored.plugins.content.local.store import open_store
from moored.plugins.diff.tar.header import BLOCK, FIELDS, REGULAR, checksum
from moored.plugins.diff.walking import WalkingDiffer
from moored.plugins.diff.zygote import NAME
from unit.descriptors import none_left_open

R = TypeVar("R")

as_root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and mounts")]

Tree = dict[str, tuple[Any, ...]]


def tree(root: Path, *, times: bool = True) -> Tree:
    """All that can be seen of a folder's contents, by path."""
    found: Tree = {}
    links: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = ""
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == stat.S_IFLNK:
            content = str(path.readlink())
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            content = status.st_rdev
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        first = links.setdefault(status.st_ino, name)
        mtime = status.st_mtime_ns if times else 0
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            mtime,
            content,
            tuple(sorted(xattrs.items())),
            first,
        )
    return found


def names(root: Path) -> list[str]:
    """The paths below a folder."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def block(name: bytes = b"f", **fields: Any) -> bytes:
    """One header, its fields as raw bytes or numbers, with a good checksum."""
    values: dict[str, Any] = {
        "name": name,
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": b"00000000000\0",
        "mtime": b"00000000000\0",
        "chksum": b" " * 8,
        "type": REGULAR,
        "link": b"",
        "magic": b"ustar\0",
        "version": b"00",
        "uname": b"",
        "gname": b"",
        "major": b"",
        "minor": b"",
        "prefix": b"",
        "tail": b"",
        **fields,
    }
    for key, value in values.items():
        if isinstance(value, int):
            values[key] = b"%0*o\0" % (11 if key in {"size", "mtime"} else 7, value)
    made = FIELDS.pack(*values.values())
    if "chksum" in fields:
        return made
    return made[:148] + b"%06o\0 " % checksum(made) + made[156:]


def padded(data: bytes) -> bytes:
    """Data filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    """A header with its data."""
    return block(name, size=len(data), **fields) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """A PAX record."""
    size = len(key) + len(value) + 3
    while len(str(size)) + len(key) + len(value) + 3 != size:
        size = len(str(size)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (size, key, value)


def pax(**records: bytes) -> bytes:
    """An extended header; underscores in keys stand for dots."""
    return pax_of({key.replace("__", ".").encode(): value for key, value in records.items()})


def pax_of(records: dict[bytes, bytes]) -> bytes:
    """An extended header of any keys."""
    return file(b"PaxHeaders/x", b"".join(record(key, value) for key, value in records.items()), type=b"x")


END = bytes(2 * BLOCK)


strangers: frozenset[str] = frozenset()
"""Children of this process that the test found there."""


def all_children() -> list[str]:
    """The processes that this one started or had forked, the zygote among them."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in found if pid not in strangers]


def children() -> list[int]:
    """The same, but for the zygote."""
    return [int(pid) for pid in all_children() if _name(pid) != NAME]


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return NAME  # a zygote that just ended: a thread of the loop waits for it


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def staged(folder: Path, **options: Any) -> AsyncGenerator[Stage]:
    """A differ over a new store."""
    async with open_store(folder / "content", structlog.get_logger()) as store:
        stage = folder / "stage"
        stage.mkdir(exist_ok=True)
        yield Stage(WalkingDiffer(store, structlog.get_logger(), **options), store, stage)


async def unpack(stage: Stage, data: bytes, mounts: Sequence[Mount] | Path, media_type: str = LAYER) -> Descriptor:
    """Store a layer and apply it."""
    where = bind(mounts) if isinstance(mounts, Path) else mounts
    return await stage.differ.apply(await stage.put(data, media_type), where)


def unpacked(folder: Path, *layers: bytes, root: Path | None = None, **options: Any) -> Path:
    """Apply layers to a plain folder, one after the other; the folder."""
    root = root or folder / "root"
    root.mkdir(exist_ok=True)

    async def go() -> None:
        async with staged(folder, **options) as stage:
            for layer in layers:
                await unpack(stage, layer, root)

    done(go())
    return root


def overlay(upper: Path, *lowers: Path, options: Sequence[str] = ()) -> list[Mount]:
    """An overlay mount, nearest lower folder first."""
    work = upper.parent / f"{upper.name}-work"
    for folder in (upper, work):
        folder.mkdir(exist_ok=True)
    lower = ":".join(map(str, lowers))
    return [
        Mount(
            type="overlay",
            source="overlay",
            options=(f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}", *options),
        )
    ]


def done(work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine on a loop of its own; it must leave no task and no descriptor."""

    async def main() -> R:
        async with asyncio.timeout(60):
            result = await work
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    with none_left_open():
        return asyncio.run(main())
