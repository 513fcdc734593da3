"""Fetches an image's objects from a registry into the daemon's content store, going on where an attempt broke off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final

from moored.api.client.content import Content
from moored.api.client.labels import child_labels, source_labels
from moored.api.client.transfers.tasks import together
from moored.api.client.transfers.tracking import Tracker
from moored.api.registry.client import Registry
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import add_labels, open_writer, ref_key, write_document
from moored.kernel.imagespec.platforms import Matcher
from moored.kernel.imagespec.walk import MAX_DEPTH, MAX_NODES, chosen, read_document

AT_ONCE: Final = 3
"""Blobs that are fetched side by side."""


class Puller:
    """Fetches what is wanted of one image; limit is how many manifests of an index to take, 0 for all that match."""

    def __init__(self, content: Content, registry: Registry, tracker: Tracker, wanted: Matcher, limit: int) -> None:
        self._content = content
        self._registry = registry
        self._tracker = tracker
        self._wanted = wanted
        self._limit = limit
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._seen: set[str] = set()

    async def fetch(self, entry: Entry, depth: int = 0) -> None:
        """Fetch an object and all that is wanted below it.

        Raises NotFound for an index without a manifest that is wanted, InvalidArgument for what is no image, or one
        that is too deep or too large; FailedPrecondition for other bytes than a digest says.
        """
        if entry.digest in self._seen:
            return
        self._seen.add(entry.digest)
        if depth > MAX_DEPTH or len(self._seen) > MAX_NODES:
            raise InvalidArgument(f"image has more than {MAX_NODES} objects or {MAX_DEPTH} levels")
        self._tracker.waiting(entry)
        if not media.is_branch(entry.media_type):
            async with self._slots:
                await self._blob(entry)
            return
        children = await self._document(entry)
        if entry.media_type in media.INDEXES:
            children = chosen(children, self._wanted, self._limit)
            if not children and self._limit:
                raise NotFound(f"no match for platform in manifest {entry.digest}")
        await together(self.fetch(child, depth + 1) for child in children)

    async def _document(self, entry: Entry) -> Sequence[Entry]:
        if await self._content.exists(entry.digest):
            data = await read_document(entry, self._stored)
            new = False
        else:
            data = await read_document(entry, self._registry.document)
            new = True
        children = documents.children(data, entry.media_type, entry.digest)
        labels = {**child_labels(children), **await self._sources(entry, new=new)}
        # Written again even if it is there: so it belongs to the lease.
        new = await write_document(self._content, entry, data, labels)
        (self._tracker.complete if new else self._tracker.exists)(entry)
        return children

    async def _stored(self, entry: Entry) -> bytes:
        return await self._content.read(entry.digest, limit=MAX_DOCUMENT)

    async def _sources(self, entry: Entry, *, new: bool) -> Mapping[str, str]:
        known = {} if new else (await self._content.info(entry.digest)).labels
        return source_labels(known, self._registry.reference)

    async def _blob(self, entry: Entry) -> None:
        if not entry.size:
            raise InvalidArgument(f"object {entry.digest} of the image has a size of 0")
        try:
            if not await self._resumed(entry):
                await self._resumed(entry)
        except AlreadyExists:
            self._tracker.exists(entry)
            await add_labels(self._content, entry.digest, await self._sources(entry, new=False))
        else:
            self._tracker.complete(entry)

    async def _resumed(self, entry: Entry) -> bool:
        """Fetch what is missing; False if what was there before was wrong, and is gone now."""
        async with await open_writer(self._content, ref_key(entry), entry.size, entry.digest) as writer:
            begun = offset = (await writer.status()).offset
            try:
                if offset < entry.size:
                    async with aclosing(self._registry.fetch(entry, offset)) as pieces:
                        async for piece in pieces:
                            offset = await writer.write(piece)
                            self._tracker.moved(entry, offset)
                await writer.commit(entry.size, entry.digest, await self._sources(entry, new=True))
            except FailedPrecondition:
                await writer.close()
                # The bytes are wrong; what is kept of them would spoil the next attempt.
                with suppress(NotFound):
                    await self._content.abort(ref_key(entry))
                if not begun:
                    raise
                return False
        return True
