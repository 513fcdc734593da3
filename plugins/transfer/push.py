"""Pushes an image: blobs side by side, then manifests, then indexes, so that no document comes before what it names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from moored.api.registry.client import Registry
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.platforms import EVERYTHING, exactly
from moored.kernel.imagespec.walk import Node, walk
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.transfer import Progress, Report, Repository, StoredImages
from moored.plugins.transfer.labels import mount_candidate, source_label
from moored.plugins.transfer.registries import opened
from moored.plugins.transfer.settings import Shared
from moored.plugins.transfer.together import together
from moored.plugins.transfer.tracker import Tracker


async def push(shared: Shared, source: StoredImages, destination: Repository, report: Report | None) -> None:
    """Push the image that `source` names."""
    tell: Report = report or (lambda _news: None)
    image = await shared.objects.images.get(source.name)
    tell(Progress(event=f"Pushing to {destination}"))
    tell(Progress(event="pushing content", name=image.name, descriptor=image.target))
    target = Entry(
        media_type=image.target.media_type,
        digest=image.target.digest,
        size=image.target.size,
        annotations=dict(image.target.annotations),
    )
    async with opened(destination, shared) as registry:
        tree = _Tree(shared, registry, Tracker(report, image.name, "uploading"))
        await tree.collect(target, source)
        await tree.send(target)
    tell(Progress(event="pushed content", name=image.name, descriptor=image.target))
    tell(Progress(event=f"Completed push to {destination}", descriptor=image.target))


@dataclass(slots=True)
class _Tree:
    """The objects of one image on their way."""

    shared: Shared
    registry: Registry
    tracker: Tracker
    blobs: list[Entry] = field(default_factory=list)
    manifests: list[Node] = field(default_factory=list)
    indexes: list[Node] = field(default_factory=list)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    """Labels of the documents that refer to an object: what they say holds for it too."""

    @property
    def _store(self) -> LabelledContentStore:
        return self.shared.objects.content

    async def collect(self, target: Entry, source: StoredImages) -> None:
        """Find all that is to be pushed, parents before children. Raises NotFound for a document that is missing."""
        wanted = exactly(source.platforms) if source.platforms else EVERYTHING
        async for node in walk(target, self._read, wanted):
            if node.document is None:
                self.blobs.append(node.entry)
                continue
            (self.indexes if node.entry.media_type in media.INDEXES else self.manifests).append(node)
            self.tracker.children(node.entry, node.children)
            labels = {**await self._labels(node.entry.digest), **(node.entry.annotations or {})}
            for child in node.children:
                self.sources.setdefault(child.digest, {}).update(labels)

    async def _labels(self, digest: str) -> Mapping[str, str]:
        return (await self._store.info(digest)).labels

    async def _read(self, entry: Entry) -> bytes:
        return await read_blob(self._store, entry.digest, MAX_DOCUMENT)

    async def send(self, target: Entry) -> None:
        """Push what was found; the target alone gets the tag."""
        await together(self._blob(entry) for entry in self.blobs)
        tag = {target.digest: self.registry.reference.tag if not self.registry.reference.digest else ""}
        await together(self._document(node, tag.get(node.entry.digest, "")) for node in self.manifests)
        for node in reversed(self.indexes):
            await self._document(node, tag.get(node.entry.digest, ""))

    async def _blob(self, entry: Entry) -> None:
        async with self.shared.uploads():
            self.tracker.add(entry)
            if await self.registry.exists(entry):
                self.tracker.exists(entry)
                return
            labels = await self._labels(entry.digest)
            key = source_label(self.registry.reference)
            known = {key: labels.get(key) or self.sources.get(entry.digest, {}).get(key, "")}
            candidate = mount_candidate(known, self.registry.reference)
            sent = await self.registry.push_blob(entry, self._source(entry), mount_from=candidate)
            (self.tracker.complete if sent else self.tracker.exists)(entry)

    def _source(self, entry: Entry) -> Callable[[], AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            sent = 0
            async with await self._store.reader(entry.digest, entry.size) as blob, aclosing(blob.chunks()) as pieces:
                async for piece in pieces:
                    yield piece
                    sent += len(piece)
                    self.tracker.moved(entry, sent)

        return chunks

    async def _document(self, node: Node, tag: str) -> None:
        assert node.document is not None
        async with self.shared.uploads():
            self.tracker.add(node.entry)
            if await self.registry.exists(node.entry, tag):
                self.tracker.exists(node.entry)
                return
            await self.registry.push_manifest(node.entry, node.document, tag)
            self.tracker.complete(node.entry)
