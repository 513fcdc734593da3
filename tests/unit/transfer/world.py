"""The transferrer over real stores in a folder, a registry made for tests, and images to put there."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from harness import THING, running
from moored.kernel.imagespec import media
from moored.kernel.namespaces import bind
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.content import read_blob
from moored.kernel.ports.objects import METADATA, Objects
from moored.kernel.ports.transfer import (
    TRANSFER,
    ArchiveSink,
    ArchiveSource,
    ExtraName,
    Progress,
    Repository,
    StoredImages,
    Transferrer,
)

NS = "ns"
TRANSFER_URI = "io.containerd.transfer.v1.local"
PLUGINS = (
    TRANSFER_URI,
    "io.containerd.content.v1.content",
    "io.containerd.differ.v1.walking",
    "io.containerd.event.v1.exchange",
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.lease.v1.manager",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.native",
    "io.moored.database.v1.lmdb",
)
PREFIX = "docker.io/test/image"
NATIVE = {"unpack_config": None}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


@dataclass
class Made:
    """An image: its blobs by digest, and descriptors as documents write them."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}

    def document(self, media_type: str, content: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return self.add(
            media_type, json.dumps({"schemaVersion": 2, "mediaType": media_type, **content}).encode(), **more
        )


def image(*layers: bytes, platform: str = "amd64", layer_type: str = f"{media.OCI_LAYER}+gzip", **config: Any) -> Made:
    """An image of these tars, each gzipped; more of its config by keyword."""
    made = Made()
    tars = layers or (tar_of({"file": b"content"}),)
    made.layers = [made.add(layer_type, gzip.compress(data, mtime=0)) for data in tars]
    diff_ids = [digest_of(data) for data in tars]
    body = {"architecture": platform, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, **config}
    described = made.add(media.OCI_CONFIG, json.dumps(body).encode())
    made.target = made.document(media.OCI_MANIFEST, {"config": described, "layers": made.layers})
    return made


def index(*images: Made, platforms: Sequence[str] = ("amd64", "arm64")) -> Made:
    """An index of images."""
    made = Made()
    entries = []
    for one, name in zip(images, platforms, strict=False):
        made.blobs |= one.blobs
        entries.append({**one.target, "platform": {"os": "linux", "architecture": name}})
    made.target = made.document(media.OCI_INDEX, {"manifests": entries})
    return made


def layout(made: Made, *, name: str = "latest", without: Sequence[str] = (), **more: bytes) -> bytes:
    """The image as an OCI archive; without some of its blobs, with further files."""
    top = {**made.target, "annotations": {"org.opencontainers.image.ref.name": name}}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    files |= {f"blobs/{key.replace(':', '/')}": data for key, data in made.blobs.items() if key not in without}
    return tar_of({**files, **more})


Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class FakeRegistry:
    """A registry in memory that notes what it is asked, and may answer wrongly.

    fault     asked first, for every request
    ranges    whether parts of blobs are given
    """

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, tuple[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    range_headers: list[str] = field(default_factory=list)
    fault: Fault | None = None
    ranges: bool = True

    def put(self, made: Made, name: str = "a/b:1") -> str:
        """Offer an image; its whole name."""
        self.blobs |= made.blobs
        self.tags[name] = made.target["mediaType"], made.target["digest"]
        return f"{self.address}/{name}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v2/")
        self.asked.append(f"{request.method} {request.path_qs}")
        if found := request.headers.get("Range"):
            self.range_headers.append(found)
        if self.fault is not None and (wrong := await self.fault(request)) is not None:
            return wrong
        match = re.fullmatch(r"(.+)/(manifests|blobs)/([^/]+)", path)
        if request.method in {"GET", "HEAD"} and match:
            return self._object(request, match[1], match[3])
        return await self._upload(request, path)

    def _object(self, request: web.Request, repository: str, name: str) -> web.Response:
        media_type, digest = self.tags.get(f"{repository}:{name}", ("application/octet-stream", name))
        data = self.blobs.get(digest)
        if data is None:
            return web.Response(status=404)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", request.headers.get("Range", ""))
        if wanted and self.ranges:
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return web.Response(status=206, body=data[start : end + 1], headers=headers)
        return web.Response(body=data, headers=headers)

    async def _upload(self, request: web.Request, path: str) -> web.Response:
        if request.method == "POST":
            source = request.query.get("mount", "")
            if source in self.blobs:
                return web.Response(status=201)
            return web.Response(status=202, headers={"Location": f"/v2/{path.rstrip('/')}/1"})
        data = await request.read()
        if "/manifests/" in path:
            repository, _, name = path.partition("/manifests/")
            if not name.startswith("sha256:"):
                self.tags[f"{repository}:{name}"] = request.content_type, digest_of(data)
        self.blobs[digest_of(data)] = data
        return web.Response(status=201)


@asynccontextmanager
async def registry() -> AsyncGenerator[FakeRegistry]:
    fake = FakeRegistry()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@dataclass
class World:
    """The parts that tests look at; every call is made in the namespace NS."""

    objects: Objects
    transferrer: Transferrer
    news: list[Progress] = field(default_factory=list)

    async def transfer(self, source: object, destination: object) -> None:
        with bind(NS):
            await self.transferrer.transfer(source, destination, self.news.append)

    async def pull(self, reference: str, **wanted: Any) -> None:
        await self.transfer(
            Repository(reference=reference, default_scheme="http"), StoredImages(**{"name": "pulled", **wanted})
        )

    async def import_(self, data: bytes, *, piece: int = 1 << 16, force_compress: bool = False, **wanted: Any) -> None:
        source = ArchiveSource(chunks=lambda: chunks(data, piece), force_compress=force_compress)
        names = (ExtraName(name=PREFIX, is_prefix=True),)
        await self.transfer(source, StoredImages(**{"extra": names, **wanted}))

    async def export(self, name: str, **wanted: Any) -> bytes:
        out = io.BytesIO()

        async def write(data: bytes) -> None:
            out.write(data)

        await self.transfer(StoredImages(name=name), ArchiveSink(write=write, **wanted))
        return out.getvalue()

    async def names(self) -> dict[str, str]:
        with bind(NS):
            return {one.name: one.target.digest for one in await self.objects.images.list()}

    async def labels(self, digest: str) -> Mapping[str, str]:
        with bind(NS):
            return (await self.objects.content.info(digest)).labels

    async def content(self) -> set[str]:
        with bind(NS):
            return {str(info.digest) async for info in self.objects.content.walk()}

    async def read(self, digest: str) -> bytes:
        with bind(NS):
            return await read_blob(self.objects.content, digest, 1 << 30)

    async def left(self) -> list[object]:
        """Leases, and what a collection leaves beside them of content, ingests and snapshots."""
        with bind(NS):
            leases = await self.objects.leases.list()
        await self.objects.collect()
        with bind(NS):
            snapshots = [info.name async for info in self.objects.snapshotter("native").walk()]
            ingests = await self.objects.content.list_statuses()
        return [*leases, *sorted(await self.content()), *ingests, *snapshots]


async def chunks(data: bytes, piece: int = 1 << 16) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


@asynccontextmanager
async def world(folder: Path, **config: Any) -> AsyncGenerator[World]:
    """Open everything below a folder; the transferrer's config by keyword, other plugins' by `others`."""
    found: dict[str, Any] = {}

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[object]:
        found.update(objects=ctx.one(METADATA), transferrer=ctx.one(TRANSFER))
        yield found

    probe = Registration(kind=THING, id="probe", open=open_, requires=(METADATA, TRANSFER))
    configs = {TRANSFER_URI: config, **config.pop("others", {})}
    async with running(folder, *PLUGINS, probe, configs=configs):
        assert found, "the transferrer has not started"
        yield World(**found)
