"""Pulls an image: documents first, layers side by side and unpacked as they come, the image's name last."""

from __future__ import annotations

import json
from typing import Final

from moored.api.transfer.choice import Choice
from moored.api.transfer.fetch import Fetcher
from moored.api.transfer.names import store_names
from moored.api.transfer.together import explained
from moored.api.transfer.tracker import Tracker
from moored.api.transfer.tree import Tree
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.archives.plain import described
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import write_document
from moored.kernel.namespaces import current_namespace
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.transfer import Progress, Report, Repository, StoredImages
from moored.plugins.transfer.registries import opened
from moored.plugins.transfer.settings import Shared
from moored.plugins.transfer.verify import verified

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
        fetcher = Fetcher(
            shared.objects.content,
            registry,
            tracker,
            slots=shared.downloads,
            locks=shared.locks,
            scope=current_namespace(),
            chunk=shared.chunk,
            parts=shared.parts,
        )
        unpacker = shared.unpacker(wanted, tracker)
        await Tree(str(registry.reference), fetcher, Choice(wanted), tracker, unpacker).visit(target)
    finally:
        await registries.__aexit__(None, None, None)
    target = await _typed_config(shared.objects.content, target)
    for image in await store_names(shared.objects.images, wanted, target):
        tell(Progress(event="saved", name=image.name, descriptor=image.target))
    tell(Progress(event=f"Completed pull from {source}"))


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
