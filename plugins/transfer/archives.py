"""Imports archives into the image store, and exports images from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from moored.api.transfer.choice import Choice
from moored.api.transfer.labels import reference_labels
from moored.api.transfer.names import store_names
from moored.api.transfer.tracker import Tracker
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.archives.reading import read_archive
from moored.kernel.imagespec.archives.writing import Choice as Export
from moored.kernel.imagespec.archives.writing import write_archive
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import add_labels
from moored.kernel.imagespec.platforms import default, exactly
from moored.kernel.imagespec.walk import MAX_DEPTH, MAX_NODES, read_document
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.images import Image, ImageStore
from moored.kernel.ports.transfer import ArchiveSink, ArchiveSource, Progress, Report, StoredImages
from moored.plugins.transfer.settings import Shared
from moored.plugins.transfer.unpack import Unpacker


async def import_(shared: Shared, source: ArchiveSource, wanted: StoredImages, report: Report | None) -> None:
    """Read an archive, check what is in it, unpack it and give it its names."""
    tell: Report = report or (lambda _news: None)
    tell(Progress(event="Importing"))
    store = shared.objects.content
    async with aclosing(source.chunks()) as chunks:
        index = await read_archive(store, chunks, media_type=source.media_type, force_compress=source.force_compress)
    tree = _Tree(store, Choice(wanted), index, shared.unpacker(wanted, Tracker(None, "", "")))
    await tree.visit(index, 0)
    if not tree.found:
        raise Unknown("image might be filtered out")
    for target in (index, *tree.images):
        try:
            images = await store_names(shared.objects.images, wanted, target, from_annotations=target is not index)
        except NotFound:
            shared.log.info("no name for an image of an archive", digest=target.digest)
            continue
        for image in images:
            tell(Progress(event="saved", name=image.name, descriptor=target.descriptor()))
    tell(Progress(event="Completed import"))


class _Tree:
    """What an archive has brought: labelled, and held against what refers to it."""

    def __init__(self, store: LabelledContentStore, choice: Choice, index: Entry, unpacker: Unpacker | None) -> None:
        self.images: Sequence[Entry] = ()
        self.found = False
        self._store = store
        self._choice = choice
        self._index = index
        self._unpacker = unpacker
        self._seen: set[str] = set()

    async def visit(self, entry: Entry, depth: int) -> None:
        """Look at a document and at all below it that is wanted."""
        if entry.digest in self._seen:
            return
        self._seen.add(entry.digest)
        if depth > MAX_DEPTH or len(self._seen) > MAX_NODES:
            raise InvalidArgument(f"the archive has more than {MAX_NODES} objects or {MAX_DEPTH} levels")
        if not media.is_branch(entry.media_type):
            await self._check(entry)
            return
        data = await read_document(entry, self._read)
        every = documents.children(data, entry.media_type, entry.digest)
        await add_labels(self._store, entry.digest, reference_labels(every))
        if entry is self._index:
            self.images = every
        children = self._choice.of(entry, every)
        self.found = self.found or bool(children)
        if entry.media_type in media.MANIFESTS:
            await self._image(entry, documents.manifest(data, entry.digest), children)
        else:
            for child in children:
                await self.visit(child, depth + 1)

    async def _read(self, entry: Entry) -> bytes:
        return await read_blob(self._store, entry.digest, MAX_DOCUMENT)

    async def _image(self, entry: Entry, manifest: documents.Manifest, children: Sequence[Entry]) -> None:
        present = [child for child in children if await self._check(child, missing=True)]
        if not present:  # an archive may have the manifests of platforms that it does not have
            return
        if manifest.config not in present:
            raise NotFound(f"image {entry.digest} lacks its config {manifest.config.digest}")
        if manifest.config.media_type in media.CONFIGS:
            documents.config(await read_document(manifest.config, self._read), manifest.config.digest)
        whole = len(children) == len(manifest.layers) + 1
        if self._unpacker is None or not whole or not self._unpacker.is_config(manifest.config):
            return
        layers = [child for child in children if self._unpacker.is_layer(child)]
        if layers or manifest.layers:
            await self._unpacker.unpack(manifest.config, layers, self._has)

    async def _has(self, entry: Entry) -> None:
        await self._check(entry)

    async def _check(self, entry: Entry, *, missing: bool = False) -> bool:
        """Hold a blob against its descriptor; whether it is there, where it may be missing."""
        try:
            info = await self._store.info(entry.digest)
        except NotFound:
            if missing:
                return False
            raise
        if info.size != entry.size:
            raise FailedPrecondition(f"content {entry.digest} has {info.size} bytes, its descriptor says {entry.size}")
        return True


async def export(shared: Shared, source: StoredImages, sink: ArchiveSink, report: Report | None) -> None:
    """Write images as an archive."""
    tell: Report = report or (lambda _news: None)
    tell(Progress(event="Exporting"))
    choice = Export(
        wanted=exactly(sink.platforms or [default()]),
        all_platforms=sink.all_platforms,
        docker_manifest=not sink.skip_docker_manifest,
        nondistributable=not sink.skip_nondistributable,
    )
    images = await _looked_up(shared.objects.images, source)
    await write_archive(shared.objects.content, images, choice, sink.write)
    tell(Progress(event="Completed export"))


async def _looked_up(images: ImageStore, source: StoredImages) -> list[Image]:
    if any(extra.is_prefix for extra in source.extra):
        raise Unimplemented("prefix lookup on export not implemented")
    names = [source.name] if source.name else []
    return [await images.get(name) for name in [*names, *(extra.name for extra in source.extra)]]


async def echo(source: ArchiveSource, sink: ArchiveSink) -> None:
    """Give the bytes of an archive back as they are."""
    async with aclosing(source.chunks()) as chunks:
        async for chunk in chunks:
            await sink.write(chunk)
