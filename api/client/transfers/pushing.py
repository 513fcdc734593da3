"""Sends an image's objects to a registry: blobs side by side, then manifests, then indexes from the innermost out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from moored.api.client.content import Content
from moored.api.client.labels import mount_candidate
from moored.api.client.transfers.tasks import together
from moored.api.client.transfers.tracking import Tracker
from moored.api.registry.client import Registry
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.platforms import Matcher
from moored.kernel.imagespec.walk import Node, walk

AT_ONCE: Final = 3
"""Objects that are sent side by side."""


class Pusher:
    """Sends one image."""

    def __init__(self, content: Content, registry: Registry, tracker: Tracker) -> None:
        self._content = content
        self._registry = registry
        self._tracker = tracker
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def push(self, target: Entry, wanted: Matcher) -> None:
        """Send all that is wanted; the target alone gets the tag. Raises NotFound for an object that is missing."""
        async with aclosing(walk(target, self._read, wanted)) as walked:
            nodes = [node async for node in walked]
        indexes = [node for node in nodes if node.entry.media_type in media.INDEXES]
        manifests = [node for node in nodes if node.entry.media_type in media.MANIFESTS]
        await together(self._blob(node.entry) for node in nodes if node.document is None)
        await together(self._document(node, target) for node in manifests)
        for node in reversed(indexes):
            await self._document(node, target)

    async def _read(self, entry: Entry) -> bytes:
        return await self._content.read(entry.digest, limit=MAX_DOCUMENT)

    async def _blob(self, entry: Entry) -> None:
        async with self._slots:
            self._tracker.waiting(entry)
            if await self._registry.exists(entry):
                self._tracker.exists(entry)
                return
            labels = (await self._content.info(entry.digest)).labels
            candidate = mount_candidate(labels, self._registry.reference)
            sent = await self._registry.push_blob(entry, self._source(entry), mount_from=candidate)
            (self._tracker.complete if sent else self._tracker.exists)(entry)

    def _source(self, entry: Entry) -> Callable[[], AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            sent = 0
            async with (
                await self._content.reader(entry.digest, entry.size) as blob,
                aclosing(blob.chunks()) as pieces,
            ):
                async for piece in pieces:
                    yield piece
                    sent += len(piece)
                    self._tracker.moved(entry, sent)

        return chunks

    async def _document(self, node: Node, target: Entry) -> None:
        assert node.document is not None
        reference = self._registry.reference
        tag = reference.tag if node.entry.digest == target.digest and not reference.digest else ""
        async with self._slots:
            self._tracker.waiting(node.entry)
            if await self._registry.exists(node.entry, tag):
                self._tracker.exists(node.entry)
                return
            await self._registry.push_manifest(node.entry, node.document, tag)
            self._tracker.complete(node.entry)
