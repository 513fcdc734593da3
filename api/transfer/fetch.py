"""Fetches the objects of an image into the content store, going on where an earlier attempt broke off."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Final

from moored.api.registry.client import Registry
from moored.api.transfer.labels import with_source
from moored.api.transfer.tracker import Tracker
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec.archives.compression import gathered
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import add_labels, open_writer, ref_key
from moored.kernel.imagespec.walk import read_document
from moored.kernel.ports.content import LabelledContentStore, LabelledWriter, read_blob
from moored.kernel.turns import Turns

Slots = AbstractAsyncContextManager[object]
"""Entered for the time of one download."""
LEAST_CHUNK: Final = 512
"""Bytes that a part of a layer must have for layers to be fetched in parts."""


class Fetcher:
    """Fetches from one repository.

    slots     bounds the blobs that are fetched at once, by all transfers together
    locks     so that two transfers into one place, which `scope` names, do not fetch one blob
    chunk     bytes of the parts of a layer that are fetched side by side, each in memory; 0: in one piece
    parts     how many parts at once
    """

    def __init__(
        self,
        store: LabelledContentStore,
        registry: Registry,
        tracker: Tracker,
        *,
        slots: Callable[[], Slots],
        locks: Turns[tuple[str, ...]],
        scope: str = "",
        chunk: int = 0,
        parts: int = 1,
    ) -> None:
        self._store = store
        self._registry = registry
        self._tracker = tracker
        self._slots = slots
        self._locks = locks
        self._scope = scope
        self._chunk = chunk
        self._parts = parts

    async def document(self, entry: Entry, labels: Callable[[bytes], Mapping[str, str]]) -> bytes:
        """Fetch a document and give it; `labels` says what labels it is to have, and raises if it is malformed."""
        self._tracker.add(entry)
        _refuse_empty(entry)
        async with self._locks.take((self._scope, entry.digest)):
            try:
                return await self._new_document(entry, labels)
            except AlreadyExists:
                self._tracker.exists(entry)
                data = await read_document(entry, self._from_store)
                await self._label(entry, labels(data))
                return data

    async def _new_document(self, entry: Entry, labels: Callable[[bytes], Mapping[str, str]]) -> bytes:
        async with await open_writer(self._store, ref_key(entry), entry.size, entry.digest) as writer:
            offset = (await writer.status()).offset
            if offset == entry.size:  # another namespace has it, or all of it had come
                await self._commit(entry, writer, {})
                data = await read_document(entry, self._from_store)
                await self._label(entry, labels(data))
                return data
            data = await read_document(entry, self._registry.document)
            wanted = {**labels(data), **with_source({}, self._registry.reference)}
            if offset:
                await writer.truncate()
            await writer.write(data)
            await self._commit(entry, writer, wanted)
            self._tracker.complete(entry)
            return data

    async def _from_store(self, entry: Entry) -> bytes:
        return await read_blob(self._store, entry.digest, MAX_DOCUMENT)

    async def _label(self, entry: Entry, labels: Mapping[str, str]) -> None:
        known = (await self._store.info(entry.digest)).labels
        await add_labels(self._store, entry.digest, {**labels, **with_source(known, self._registry.reference)})

    async def blob(self, entry: Entry) -> None:
        """Fetch a blob."""
        self._tracker.add(entry)
        _refuse_empty(entry)
        async with self._slots(), self._locks.take((self._scope, entry.digest)):
            try:
                await self._new_blob(entry)
            except AlreadyExists:
                self._tracker.exists(entry)
                await self._label(entry, {})

    async def _new_blob(self, entry: Entry) -> None:
        for fresh in (False, True):
            async with await open_writer(self._store, ref_key(entry), entry.size, entry.digest) as writer:
                offset = (await writer.status()).offset
                try:
                    await self._fill(entry, writer, offset)
                    await self._commit(entry, writer, with_source({}, self._registry.reference))
                    break
                except FailedPrecondition:
                    # The bytes are wrong; what is kept of them would spoil the next attempt.
                    await writer.close()
                    with suppress(NotFound):
                        await self._store.abort(ref_key(entry))
                    if fresh or not offset:
                        raise
        self._tracker.complete(entry)

    async def _fill(self, entry: Entry, writer: LabelledWriter, offset: int) -> None:
        if offset == entry.size:
            return
        async with aclosing(self._pieces(entry, offset)) as pieces, aclosing(gathered(pieces)) as larger:
            async for piece in larger:
                offset = await writer.write(piece)
                self._tracker.moved(entry, offset)

    async def _commit(self, entry: Entry, writer: LabelledWriter, labels: Mapping[str, str]) -> None:
        await writer.commit(entry.size, entry.digest, labels)

    async def _pieces(self, entry: Entry, start: int) -> AsyncGenerator[bytes]:
        if entry.data is not None and len(entry.data) == entry.size:
            yield entry.data[start:]
            return
        big = self._chunk >= LEAST_CHUNK and self._parts > 1 and entry.size - start >= 2 * self._chunk
        source = (
            self._in_parts(entry, start)
            if big and not entry.urls and await self._registry.takes_ranges(entry)
            else self._registry.fetch(entry, start)
        )
        async with aclosing(source):
            async for piece in source:
                yield piece

    async def _in_parts(self, entry: Entry, start: int) -> AsyncGenerator[bytes]:
        """Give the bytes in order while the parts after those given are being fetched."""
        waiting: deque[asyncio.Task[bytes]] = deque()
        begin = start
        try:
            while waiting or begin < entry.size:
                while len(waiting) < self._parts and begin < entry.size:
                    end = min(begin + self._chunk, entry.size)
                    waiting.append(asyncio.create_task(self._part(entry, begin, end)))
                    begin = end
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _part(self, entry: Entry, start: int, end: int) -> bytes:
        async with aclosing(self._registry.fetch(entry, start, end)) as pieces:
            return b"".join([piece async for piece in pieces])


def _refuse_empty(entry: Entry) -> None:
    if entry.size == 0:
        raise InvalidArgument(f"unable to fetch descriptor ({entry.digest}) which reports content size of zero")
