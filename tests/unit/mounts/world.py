"""A mount manager on real records, in a kernel of the test's own."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import THING, Running, plug, running
from moored.kernel.namespaces import bind
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.mounts import MOUNT_HANDLER, MOUNT_MANAGER, Mount, MountHandler, MountManager
from moored.kernel.ports.objects import METADATA, Objects
from unit.metadata.objects import STORES

MANAGER = "io.containerd.mount-manager.v1.bolt"
EROFS = "io.containerd.mount-handler.v1.erofs"
NS = "ns"


@dataclass(frozen=True)
class Opened:
    """The port, the objects that it is recorded among, and its folder."""

    manager: MountManager
    objects: Objects
    kernel: Running
    folder: Path

    @property
    def places(self) -> Path:
        """Where it mounts."""
        return self.folder / "state" / MANAGER / "t"

    @property
    def mounted(self) -> list[str]:
        """What is mounted there, as `1/2`."""
        points = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return sorted(point.removeprefix(f"{self.places}/") for point in points if point.startswith(str(self.places)))

    @property
    def folders(self) -> list[str]:
        """What is there for activations."""
        return sorted(path.name for path in self.places.iterdir())


@asynccontextmanager
async def opened(folder: Path, *more: Any, handlers: dict[str, MountHandler] | None = None) -> AsyncGenerator[Opened]:
    """Start it, in namespace NS; again with the same folder it goes on with what is there."""
    found: list[tuple[MountManager, Objects]] = []

    @asynccontextmanager
    async def look(ctx: InitContext[None]) -> AsyncGenerator[None]:
        found.append((ctx.one(MOUNT_MANAGER), ctx.one(METADATA)))
        yield

    probe: Registration[Any, Any] = Registration(kind=THING, id="probe", open=look, requires=(METADATA, MOUNT_MANAGER))
    plugged = [plug(MOUNT_HANDLER, name, handler) for name, handler in (handlers or {}).items()]
    async with running(folder, *STORES, MANAGER, *plugged, *more, probe) as kernel:
        with bind(NS):
            yield Opened(*found[0], kernel, folder)


def tmpfs(*options: str) -> Mount:
    return Mount(type="tmpfs", source="tmpfs", options=options)


def bound(source: Path | str, *options: str) -> Mount:
    return Mount(type="bind", source=str(source), options=("rbind", *options))


def erofs_image(file: Path, name: bytes = b"hello", content: bytes = b"from erofs") -> Path:
    """An erofs with one file, made by hand: a superblock, and the inodes with their data behind them."""

    def inode(mode: int, number: int, data: bytes, links: int) -> bytes:
        # Compact, data inline: format, xattrs, mode, links, size, reserved, union, number, uid, gid, reserved.
        head = struct.pack("<HHHHIIIIHHI", 2 << 1, 0, mode, links, len(data), 0, 0xFFFFFFFF, number, 0, 0, 0)
        return (head + data).ljust(-(-(len(head) + len(data)) // 32) * 32, b"\0")

    root_at, file_at = 36, 40
    entries = sorted([(b".", root_at, 2), (b"..", root_at, 2), (name, file_at, 1)])
    heads, texts, offset = b"", b"", 12 * len(entries)
    for text, number, kind in entries:
        heads += struct.pack("<QHBB", number, offset + len(texts), kind, 0)
        texts += text
    root, leaf = inode(0o040755, 1, heads + texts, 2), inode(0o100644, 2, content, 1)
    # magic, checksum, features, block bits, extra slots, root, inodes, build time, blocks, meta and xattr blocks
    top = struct.pack("<IIIBBHQQIIII", 0xE0F5E1E2, 0, 0, 12, 0, root_at, 2, 0, 0, 1, 0, 0)
    image = bytearray(4096)
    image[1024 : 1024 + len(top)] = top
    image[root_at * 32 : root_at * 32 + len(root)] = root
    image[file_at * 32 : file_at * 32 + len(leaf)] = leaf
    file.write_bytes(image)
    return file
