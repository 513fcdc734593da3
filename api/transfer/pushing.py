"""Pushes an image: blobs side by side, then manifests, then indexes, so that no document comes before what it names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field

from moored.api.registry.client import Registry
from moored.api.transfer.labels import mount_candidate, source_label
from moored.api.transfer.together import together
from moored.api.transfer.tracker import Tracker
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.platforms import Matcher
from moored.kernel.imagespec.walk import Node, walk
from moored.kernel.ports.content import LabelledContentStore, read_blob


@dataclass(slots=True)
class Pushing:
    """The objects of one image on their way; uploads gives places for objects that are sent at once."""

    store: LabelledContentStore
    registry: Registry
    tracker: Tracker
    uploads: Callable[[], AbstractAsyncContextManager[object]]
    blobs: list[Entry] = field(default_factory=list)
    manifests: list[Node] = field(default_factory=list)
    indexes: list[Node] = field(default_factory=list)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    """Labels of the documents that refer to an object: what they say holds for it too."""

    async def push(self, target: Entry, wanted: Matcher) -> None:
        """Push an object and all below it that is wanted. Raises NotFound for one that is missing."""
        await self._collect(target, wanted)
        await self._send(target)

    async def _collect(self, target: Entry, wanted: Matcher) -> None:
        """Find all that is to be pushed, parents before children."""
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
        return (await self.store.info(digest)).labels

    async def _read(self, entry: Entry) -> bytes:
        return await read_blob(self.store, entry.digest, MAX_DOCUMENT)

    async def _send(self, target: Entry) -> None:
        """Push what was found; the target alone gets the tag."""
        await together(self._blob(entry) for entry in self.blobs)
        tag = {target.digest: self.registry.reference.tag if not self.registry.reference.digest else ""}
        await together(self._document(node, tag.get(node.entry.digest, "")) for node in self.manifests)
        for node in reversed(self.indexes):
            await self._document(node, tag.get(node.entry.digest, ""))

    async def _blob(self, entry: Entry) -> None:
        async with self.uploads():
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
            async with await self.store.reader(entry.digest, entry.size) as blob, aclosing(blob.chunks()) as pieces:
                async for piece in pieces:
                    yield piece
                    sent += len(piece)
                    self.tracker.moved(entry, sent)

        return chunks

    async def _document(self, node: Node, tag: str) -> None:
        assert node.document is not None
        async with self.uploads():
            self.tracker.add(node.entry)
            if await self.registry.exists(node.entry, tag):
                self.tracker.exists(node.entry)
                return
            await self.registry.push_manifest(node.entry, node.document, tag)
            self.tracker.complete(node.entry)
