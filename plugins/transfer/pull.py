"""Pulls an image: documents first, layers side by side and unpacked as they come, the image's name last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from moored.api.registry.client import Registry
from moored.kernel.errors import InvalidArgument
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.archives.plain import described
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import write_document
from moored.kernel.imagespec.walk import MAX_DEPTH, MAX_NODES
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.transfer import Progress, Report, Repository, StoredImages
from moored.plugins.transfer.choice import Choice
from moored.plugins.transfer.fetch import Fetcher
from moored.plugins.transfer.labels import reference_labels
from moored.plugins.transfer.names import store_names
from moored.plugins.transfer.registries import opened
from moored.plugins.transfer.settings import Shared
from moored.plugins.transfer.together import explained, together
from moored.plugins.transfer.tracker import Tracker
from moored.plugins.transfer.unpack import Unpacker
from moored.plugins.transfer.verify import verified

DOCUMENTS_AT_ONCE: Final = 8
OCTETS: Final = "application/octet-stream"
"""What some old registries call an image's config."""


async def pull(shared: Shared, source: Repository, wanted: StoredImages, report: Report | None) -> None:
    """Pull, under the current lease."""
    tell: Report = report or (lambda _news: None)
    tell(Progress(event=f"Resolving from {source}"))
    registries = opened(source, shared)
    registry = await explained(registries.__aenter__(), "failed to resolve image")
    try:
        target = await explained(registry.resolve(), "failed to resolve image")
        await verified(shared.verifiers, source.reference, target.descriptor())
        tell(Progress(event=f"Pulling from {source}"))
        tell(Progress(event="fetching image content", name=source.reference, descriptor=target.descriptor()))
        tracker = Tracker(report, source.reference, "downloading")
        unpacker = shared.unpacker(wanted, tracker)
        await _Tree(shared, registry, wanted, tracker, unpacker).visit(target, 0)
    finally:
        await registries.__aexit__(None, None, None)
    target = await _typed_config(shared.objects.content, target)
    for image in await store_names(shared.objects.images, wanted, target):
        tell(Progress(event="saved", name=image.name, descriptor=image.target))
    tell(Progress(event=f"Completed pull from {source}"))


class _Tree:
    """The objects of one image on their way."""

    def __init__(
        self, shared: Shared, registry: Registry, wanted: StoredImages, tracker: Tracker, unpacker: Unpacker | None
    ) -> None:
        self._name = str(registry.reference)
        self._choice = Choice(wanted)
        self._tracker = tracker
        self._unpacker = unpacker
        self._documents = asyncio.Semaphore(DOCUMENTS_AT_ONCE)
        self._seen: set[str] = set()
        self._fetcher = Fetcher(
            shared.objects.content,
            registry,
            tracker,
            slots=shared.downloads,
            locks=shared.locks,
            chunk=shared.chunk,
            parts=shared.parts,
        )

    async def visit(self, entry: Entry, depth: int) -> None:
        """Fetch an object and all below it that is wanted."""
        if entry.digest in self._seen:
            return
        self._seen.add(entry.digest)
        if depth > MAX_DEPTH or len(self._seen) > MAX_NODES:
            raise InvalidArgument(f"image {self._name} has more than {MAX_NODES} objects or {MAX_DEPTH} levels")
        if entry.media_type in media.SCHEMA1:
            raise InvalidArgument("schema 1 image manifests are no longer supported")
        if not media.is_branch(entry.media_type):
            await self._fetcher.blob(entry)
            return
        every = await self._children(entry)
        children = self._choice.of(entry, every)
        if self._unpacker is not None and entry.media_type in media.MANIFESTS and len(children) == len(every):
            await self._image(self._unpacker, entry, children, depth)
        else:
            await together(self.visit(child, depth + 1) for child in children)

    async def _children(self, entry: Entry) -> Sequence[Entry]:
        def decoded(data: bytes) -> Sequence[Entry]:
            return documents.children(data, entry.media_type, entry.digest)

        async with self._documents:
            data = await self._fetcher.document(entry, lambda data: reference_labels(decoded(data)))
        children = decoded(data)
        self._tracker.children(entry, children)
        return children

    async def _image(self, unpacker: Unpacker, manifest: Entry, children: Sequence[Entry], depth: int) -> None:
        layers = [child for child in children if unpacker.is_layer(child)]
        others = [child for child in children if not unpacker.is_layer(child)]
        await together(self.visit(child, depth + 1) for child in others)
        config = next((child for child in others if unpacker.is_config(child)), None)
        if config is None:
            await together(self.visit(child, depth + 1) for child in layers)
        else:
            named = unpacker.with_image(layers, self._name, manifest.digest)
            await unpacker.unpack(config, named, self._fetcher.blob)


async def _typed_config(store: LabelledContentStore, target: Entry) -> Entry:
    """Give the target, or what it becomes when its config gets the type that it has."""
    if target.media_type not in media.MANIFESTS:
        return target
    raw = await read_blob(store, target.digest, MAX_DOCUMENT)
    manifest = documents.manifest(raw, target.digest)
    if manifest.config.media_type != OCTETS:
        return target
    config = Entry(media_type=media.DOCKER_CONFIG, digest=manifest.config.digest, size=manifest.config.size)
    parts = [config, *manifest.layers]
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": target.media_type,
            "config": described(config),
            "layers": [described(layer) for layer in manifest.layers],
        },
        indent=3,
    ).encode()
    made = Entry(media_type=target.media_type, digest=documents.digest_of(data), size=len(data))
    labels = {f"containerd.io/gc.ref.content.{number}": part.digest for number, part in enumerate(parts)}
    await write_document(store, made, data, labels)
    return made
