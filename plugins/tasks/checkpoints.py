"""Checkpoints: CRIU images as blobs, on their way into the content store and back to folders.

    dump/RANDOM            a CRIU image while it is made and stored
    restore/NAMESPACE/ID   one to restore a task from, until that has started

What is restored from a folder may have beside it, in `rootfs-diff.tar`, what the container had changed of its files.

Source: semantics 4.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.content import ContentStore
from moored.kernel.ports.diff import LAYER, Differ
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.leases import LeaseManager
from moored.kernel.ports.mounts import Mount
from moored.kernel.records import encode_any
from moored.kernel.workers import to_the_end

IMAGE: Final = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
"""Media type of a CRIU image."""
CONFIG: Final = "application/vnd.containerd.container.checkpoint.config.v1+proto"
"""Media type of the container's spec, a protobuf Any, beside it."""

CHANGED_FILES: Final = "rootfs-diff.tar"
"""A layer, compressed or not, beside the folder of a CRIU image."""
EXPIRY: Final = "containerd.io/gc.expire"
_UNPACKING: Final = timedelta(hours=1)
"""For which changed files are held, should the daemon be killed meanwhile."""
_ANY_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
"""Whose compression its first bytes tell."""
_CHUNK: Final = 1 << 20

Name = tuple[str, str]
"""Namespace and container."""


class Checkpoints:
    """Stores and restores in the current namespace. What it stores is referenced by nothing; hold a lease.

    Errors: FailedPrecondition without a differ, and those of content and differ.
    Concurrency: any calls may overlap, `restore` and `forget` of one container apart.
    """

    def __init__(self, folder: Path, content: ContentStore, differ: Differ | None, leases: LeaseManager) -> None:
        self._dumps = folder / "dump"
        self._restores = folder / "restore"
        self._content = content
        self._differ = differ
        self._leases = leases

    async def open(self, living: Collection[Name]) -> None:
        """Remove what an earlier daemon left, but for what the tasks that still live may be restored from."""
        await asyncio.to_thread(self._clean, {self._restores / namespace / id_ for namespace, id_ in living})

    @asynccontextmanager
    async def dump(self) -> AsyncGenerator[Path]:
        """Give an empty folder for a CRIU image, gone after the block."""
        self._working_differ()
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._dumps))
        try:
            yield folder
        finally:
            await to_the_end(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def store(self, folder: Path, spec: TypedBytes) -> list[Descriptor]:
        """Store a CRIU image and the spec of its container."""
        upper = Mount(type="bind", source=str(folder), options=("rbind", "ro"))
        image = await self._working_differ().compare([], [upper], media_type=LAYER)
        config = encode_any(spec)
        digest = await self._store_blob(config)
        return [
            Descriptor(media_type=IMAGE, digest=image.digest, size=image.size),
            Descriptor(media_type=CONFIG, digest=digest, size=len(config)),
        ]

    def check(self, descriptor: Descriptor) -> None:
        """Raise Unknown `unsupported checkpoint type "T"` unless it is that of a CRIU image."""
        if descriptor.media_type != IMAGE:
            raise Unknown(f'unsupported checkpoint type "{descriptor.media_type}"')

    async def restore(self, descriptor: Descriptor, name: Name) -> Path:
        """Unpack a CRIU image for a container; `forget` removes it. Unknown `content digest D: not found`."""
        self.check(descriptor)
        differ = self._working_differ()
        folder = self._restores.joinpath(*name)
        await to_the_end(asyncio.to_thread(_emptied, folder))
        target = Mount(type="bind", source=str(folder), options=("rbind", "rw"))
        # The archive is an ordinary tar, whatever its type is called.
        layer = Descriptor(media_type=LAYER, digest=descriptor.digest, size=descriptor.size)
        try:
            await differ.apply(layer, [target], sync_fs=False)
        except BaseException as error:
            await self.forget(name)
            if isinstance(error, (NotFound, InvalidArgument)):
                raise Unknown(f"content digest {descriptor.digest}: not found") from error
            raise
        return folder

    async def bring_files(self, image: str, mounts: Sequence[Mount]) -> None:
        """Unpack the changed files that lie beside a CRIU image into a root file system; without any do nothing.

        Raises InvalidArgument if there is no root file system, OSError if they cannot be read.
        """
        archive = Path(image).parent / CHANGED_FILES
        if not await asyncio.to_thread(archive.is_file):
            return
        if not mounts:
            raise InvalidArgument(f"{str(archive)!r} cannot be unpacked, the task has no root file system of its own")
        lease = await self._leases.create("", {EXPIRY: (datetime.now(UTC) + _UNPACKING).isoformat(timespec="seconds")})
        try:
            with bind(lease=lease.id):
                digest, size = await self._store_file(archive)
                layer = Descriptor(media_type=_ANY_LAYER, digest=digest, size=size)
                await self._working_differ().apply(layer, mounts, sync_fs=False)
        finally:
            await self._leases.delete(lease.id)

    async def _store_file(self, path: Path) -> tuple[str, int]:
        """Store a file's content; its digest and size."""
        reference = f"checkpoint-files-{secrets.token_hex(8)}"
        with await asyncio.to_thread(path.open, "rb") as file:
            try:
                async with await self._content.writer(reference) as writer:
                    size = 0
                    while data := await asyncio.to_thread(file.read, _CHUNK):
                        size = await writer.write(data)
                    digest = writer.digest
                    with suppress(AlreadyExists):
                        await writer.commit(size)
            finally:
                with suppress(NotFound):
                    await self._content.abort(reference)
        return digest, size

    async def forget(self, name: Name) -> None:
        """Remove what a container was restored from, if it was."""
        folder = self._restores.joinpath(*name)
        if folder.exists():
            await to_the_end(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def _working_differ(self) -> Differ:
        if self._differ is None:
            raise FailedPrecondition("no differ is running, checkpoints in the content store need one")
        return self._differ

    async def _store_blob(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        reference = f"checkpoint-config-{secrets.token_hex(8)}"
        try:
            async with await self._content.writer(reference, len(data), digest) as writer:
                await writer.truncate(0)
                await writer.write(data)
                await writer.commit(len(data), digest)
        except AlreadyExists:
            return digest
        except BaseException:
            with suppress(NotFound):
                await self._content.abort(reference)
            raise
        return digest

    def _clean(self, kept: Collection[Path]) -> None:
        for folder in (self._dumps, self._restores):
            folder.mkdir(mode=0o700, exist_ok=True)
        found = [
            *self._dumps.iterdir(),
            *(one for namespace in self._restores.iterdir() for one in namespace.iterdir()),
        ]
        for folder in found:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
