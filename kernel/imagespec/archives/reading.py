"""Reads an archive of images into a content store and gives the index of what is in it.

OCI layouts keep their `index.json`; for what `docker save` writes, manifests and an index are made. Names in an archive
are keys and nothing else: no path of it is ever one of the host. Source: contracts/semantics.md 3.10; faults catalogue
rows 34 to 56.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Self, TypeVar

import msgspec

from moored.kernel.errors import AlreadyExists, InvalidArgument, NotFound, Unknown
from moored.kernel.imagespec import documents, media, references
from moored.kernel.imagespec.archives import tar
from moored.kernel.imagespec.archives.compression import decompressed, gathered, kind_of
from moored.kernel.imagespec.archives.plain import described, go_json, platform_json
from moored.kernel.imagespec.documents import MAX_DOCUMENT, MAX_LAYERS, Entry
from moored.kernel.imagespec.ingests import add_labels, open_writer, write_document
from moored.kernel.imagespec.platforms import normalized
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.diff import UNCOMPRESSED_LABEL

MAX_JSON: Final = 20 << 20
"""Bytes of `oci-layout` and `manifest.json`."""
MAX_MEMBERS: Final = 100_000
SMALL: Final = 256 << 10
"""Bytes of a file that is read whole, and stored while the archive is read on."""
AT_ONCE: Final = 8
"""Of these at most."""
MAX_IMAGES: Final = 4096
INDEX: Final = "index.json"
LAYOUT: Final = "oci-layout"
MANIFEST: Final = "manifest.json"
VERSION: Final = "1.0.0"

J = TypeVar("J")
Name = Annotated[str, msgspec.Meta(max_length=4096)]


class Layout(msgspec.Struct, rename={"version": "imageLayoutVersion"}):
    """`oci-layout`."""

    version: str = ""


class DockerImage(msgspec.Struct, rename="pascal"):
    """An image of `manifest.json`."""

    config: Name = ""
    repo_tags: list[Name] | None = None
    layers: list[Name] | None = None


@dataclass(slots=True)
class _Contents:
    """What was in an archive: blobs (of no media type yet) and links by name, and the two files that tell its kind."""

    layout: Layout | None = None
    images: list[DockerImage] | None = None
    blobs: dict[str, Entry] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


async def read_archive(
    store: LabelledContentStore, chunks: AsyncIterator[bytes], *, media_type: str = "", force_compress: bool = False
) -> Entry:
    """Store all files of an archive and give the descriptor of its index.

    media_type       empty for an archive that may be compressed
    force_compress   gzip the plain layers of what `docker save` wrote
    Raises Unknown for what is no archive of images (`unexpected EOF`, `unrecognized image format`), InvalidArgument for
    one that is malformed or over a limit, NotFound for a file that it names and does not have. Blobs stay with the
    current lease.
    """
    plain = gathered(chunks) if media_type else decompressed(chunks)
    async with aclosing(plain):
        contents = await _stored(store, tar.Input(plain))
    if contents.layout is not None and contents.layout.version:
        return _oci_index(contents.layout, contents.blobs)
    if contents.images is None:
        raise Unknown("unrecognized image format")
    return await _docker_index(store, contents, contents.images, force_compress=force_compress)


# --- files ------------------------------------------------------------------------------------------------------------


class _Aside:
    """Small files that are being stored while the archive is read on, by name; what is left ends with the block."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._tasks:
                await self._one_less()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def add(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin to store a file once there is room, and an earlier one of its name is stored; raises as `after`."""
        try:
            while len(self._tasks) >= AT_ONCE:
                await self._one_less()
            await self.after(name)
        except BaseException:
            work.close()
            raise
        self._tasks[name] = asyncio.create_task(work)

    async def after(self, name: str) -> None:
        """Wait for an earlier file of that name. Raises what any has failed with."""
        while name in self._tasks:
            await self._one_less()

    async def _one_less(self) -> None:
        await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        for name in [name for name, task in self._tasks.items() if task.done()]:
            self._tasks.pop(name).result()


async def _stored(store: LabelledContentStore, source: tar.Input) -> _Contents:
    contents = _Contents()
    count = 0
    async with _Aside() as aside, aclosing(tar.members(source)) as members:
        async for member in members:
            count += 1
            if count > MAX_MEMBERS:
                raise InvalidArgument(f"the archive has more than {MAX_MEMBERS} files")
            if member.kind == "link":
                contents.links[member.name] = member.target
            elif member.kind == "file":
                await _take(store, member, contents, aside)
    return contents


async def _take(store: LabelledContentStore, member: tar.Member, contents: _Contents, aside: _Aside) -> None:
    if member.name == LAYOUT:
        contents.layout = _json(await member.whole(MAX_JSON), Layout, LAYOUT)
    elif member.name == MANIFEST:
        contents.images = _json(await member.whole(MAX_JSON), list[DockerImage], MANIFEST)
    else:
        if member.name == INDEX and member.size > MAX_DOCUMENT:
            raise InvalidArgument(f"{INDEX} of the archive has {member.size} bytes, at most {MAX_DOCUMENT} are read")
        if member.size <= SMALL:
            data = await member.whole(SMALL)
            await aside.add(member.name, _take_blob(store, member, _in_one(data), contents))
            return
        await aside.after(member.name)
        async with aclosing(member.pieces()) as pieces:
            await _take_blob(store, member, pieces, contents)


async def _take_blob(
    store: LabelledContentStore, member: tar.Member, pieces: AsyncIterator[bytes], contents: _Contents
) -> None:
    try:
        contents.blobs[member.name] = await _ingested(store, f"tar-{member.name}", pieces, member.size)
    except Unknown as error:
        raise Unknown(f'failed to ingest "{member.name[:256]}": {error.text}') from error


async def _in_one(data: bytes) -> AsyncGenerator[bytes]:
    if data:
        yield data


def _json(data: bytes, kind: type[J], name: str) -> J:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{name} of the archive: {error}") from error


async def _ingested(
    store: LabelledContentStore,
    ref: str,
    pieces: AsyncIterator[bytes],
    size: int = 0,
    labels: Mapping[str, str] | None = None,
) -> Entry:
    """Store bytes as a blob; what an ingest of the name may have is not theirs."""
    async with await open_writer(store, ref, size) as writer:
        if (await writer.status()).offset:
            await writer.truncate()
        written = 0
        async for piece in pieces:
            written = await writer.write(piece)
        digest = writer.digest
        try:
            await writer.commit(written, digest, labels or {})
        except AlreadyExists:
            await add_labels(store, digest, labels or {})
    return Entry(digest=str(digest), size=written)


# --- OCI --------------------------------------------------------------------------------------------------------------


def _oci_index(layout: Layout, blobs: Mapping[str, Entry]) -> Entry:
    if layout.version != VERSION:
        raise InvalidArgument(f"unsupported OCI version {layout.version[:64]}")
    if INDEX not in blobs:
        raise NotFound(f"missing {INDEX} in OCI layout {VERSION}")
    return _typed(blobs[INDEX], media.OCI_INDEX)


def _typed(entry: Entry, media_type: str) -> Entry:
    return Entry(media_type=media_type, digest=entry.digest, size=entry.size)


# --- docker -----------------------------------------------------------------------------------------------------------


async def _docker_index(
    store: LabelledContentStore, contents: _Contents, images: Sequence[DockerImage], *, force_compress: bool
) -> Entry:
    if len(images) > MAX_IMAGES:
        raise InvalidArgument(f"{MANIFEST} names {len(images)} images, at most {MAX_IMAGES} are taken")
    blobs = {**contents.blobs, **_linked(contents)}
    manifests = []
    for image in images:
        config, layers = _parts(image, blobs)
        typed = await _typed_layers(store, layers, force_compress=force_compress)
        manifests += await _described_image(store, image, config, typed)
    return await _made(store, {"schemaVersion": 2, "manifests": manifests}, media.OCI_INDEX)


def _linked(contents: _Contents) -> dict[str, Entry]:
    """What links stand for. They name files of the archive; nothing else can be meant."""
    found = {}
    for name, target in contents.links.items():
        if target not in contents.blobs:
            raise NotFound(f'no target for symlink layer from "{name[:256]}" to "{target[:256]}"')
        found[name] = contents.blobs[target]
    return found


def _parts(image: DockerImage, blobs: Mapping[str, Entry]) -> tuple[Entry, list[Entry]]:
    layers = image.layers or []
    if len(layers) > MAX_LAYERS:
        raise InvalidArgument(f"{MANIFEST} names an image of {len(layers)} layers, at most {MAX_LAYERS} are taken")
    if image.config not in blobs:
        raise NotFound(f'image config "{image.config[:256]}" not found')
    if missing := [name for name in layers if name not in blobs]:
        raise NotFound(f'failed to resolve layers: layer "{missing[0][:256]}" not found')
    return _typed(blobs[image.config], media.DOCKER_CONFIG), [blobs[name] for name in layers]


async def _typed_layers(
    store: LabelledContentStore, layers: Sequence[Entry], *, force_compress: bool
) -> list[dict[str, object]]:
    """Give the descriptors of layers; a compressed form that the store has already is taken instead of a plain one."""
    known = await _compressed_forms(store, {layer.digest for layer in layers})
    found = []
    for plain in layers:
        layer = known.get(plain.digest, plain)
        kind = await _compression(store, layer)
        if not kind and force_compress:
            layer, kind = await _compressed(store, layer), "gzip"
        types = {"": media.DOCKER_LAYER, "gzip": media.DOCKER_LAYER_GZIP, "zstd": media.DOCKER_LAYER_ZSTD}
        found.append(described(_typed(layer, types[kind])))
    return found


async def _compressed_forms(store: LabelledContentStore, digests: set[str]) -> dict[str, Entry]:
    if not digests:
        return {}
    filters = [f'labels."{UNCOMPRESSED_LABEL}"=={digest}' for digest in sorted(digests)]
    async with aclosing(store.walk(*filters)) as infos:
        return {info.labels[UNCOMPRESSED_LABEL]: Entry(digest=str(info.digest), size=info.size) async for info in infos}


async def _compression(store: LabelledContentStore, layer: Entry) -> str:
    async with await store.reader(layer.digest) as blob:
        return kind_of(await blob.read_at(0, 16))


async def _compressed(store: LabelledContentStore, layer: Entry) -> Entry:
    ref = f"compress-blob-{layer.digest.replace(':', '-')}"
    async with await store.reader(layer.digest) as blob, aclosing(_gzipped(blob.chunks())) as pieces:
        return await _ingested(store, ref, pieces, labels={UNCOMPRESSED_LABEL: layer.digest})


async def _gzipped(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    compressor = zlib.compressobj(wbits=31)
    async for chunk in chunks:
        if piece := await asyncio.to_thread(compressor.compress, chunk):
            yield piece
    yield compressor.flush()


async def _described_image(
    store: LabelledContentStore, image: DockerImage, config: Entry, layers: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """Make the manifest of an image and give its descriptor, once for each of its names."""
    names = [_normalized(tag) for tag in image.repo_tags or []]
    decoded = documents.config(await read_blob(store, config.digest, MAX_DOCUMENT), config.digest)
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.DOCKER_MANIFEST,
        "config": described(config),
        "layers": list(layers),
    }
    made = described(await _made(store, manifest, media.DOCKER_MANIFEST))
    platform = platform_json(normalized(decoded.platform()))
    if not names:
        return [{**made, "platform": platform}]
    return [{**made, "annotations": name_annotations(name), "platform": platform} for name in names]


def _normalized(tag: str) -> str:
    try:
        parsed = references.parse_familiar(tag)
    except InvalidArgument as error:
        raise InvalidArgument(f'normalize image ref "{tag[:256]}": invalid reference format') from error
    if parsed.digest:  # as Docker has it, a tag beside a digest says nothing
        return f"{parsed.repository}@{parsed.digest}"
    return str(parsed)


def name_annotations(name: str) -> dict[str, str]:
    """Give the annotations that carry an image's whole name, and its tag, in an archive."""
    try:
        tag = references.parse(name)
    except InvalidArgument:
        return {media.IMAGE_NAME: name, media.REF_NAME: name}
    return {media.IMAGE_NAME: name, media.REF_NAME: _object(tag) or name}


def _object(reference: references.Reference) -> str:
    if reference.tag and reference.digest:
        return f"{reference.tag}@{reference.digest}"
    return reference.tag


async def _made(store: LabelledContentStore, document: Mapping[str, object], media_type: str) -> Entry:
    data = go_json(document)
    entry = Entry(media_type=media_type, digest=documents.digest_of(data), size=len(data))
    await write_document(store, entry, data)
    return entry
