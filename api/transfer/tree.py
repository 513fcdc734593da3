"""The objects of an image, fetched: documents first, layers side by side and unpacked as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, Self

from moored.api.transfer.choice import Choice
from moored.api.transfer.fetch import Fetcher
from moored.api.transfer.labels import reference_labels
from moored.api.transfer.together import together
from moored.api.transfer.tracker import Tracker
from moored.kernel.errors import InvalidArgument
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.walk import MAX_DEPTH, MAX_NODES

DOCUMENTS_AT_ONCE: Final = 8


class Unpacking(Protocol):
    """Unpacks the layers of an image as they come; the daemon's transfers have one."""

    @property
    def may_leave_out(self) -> bool:
        """Whether some layers may not have to be fetched."""

    def is_layer(self, entry: Entry) -> bool:
        """Whether an object of a manifest is unpacked."""

    def is_config(self, entry: Entry) -> bool:
        """Whether a manifest with such a config is an image that is unpacked."""

    def with_image(self, layers: Sequence[Entry], name: str, manifest: str) -> Sequence[Entry]:
        """Give layers the annotations by which they can be had without being fetched."""

    async def unpack(self, config: Entry, layers: Sequence[Entry], fetch: Callable[[Entry], Awaitable[None]]) -> None:
        """Have the layers fetched and unpack them; the config is there."""


class Tree:
    """The objects of one image on their way; name is the image's, for errors and what makes layers itself."""

    def __init__(
        self, name: str, fetcher: Fetcher, choice: Choice, tracker: Tracker, unpacker: Unpacking | None = None
    ) -> None:
        self._name = name
        self._choice = choice
        self._tracker = tracker
        self._unpacker = unpacker
        self._documents = asyncio.Semaphore(DOCUMENTS_AT_ONCE)
        self._seen: set[str] = set()
        self._fetcher = fetcher

    async def visit(self, entry: Entry, depth: int = 0) -> None:
        """Fetch an object and all below it that is wanted, and unpack what is an image.

        Raises InvalidArgument for what is no image or is too deep or too large, NotFound for an index without a
        manifest that is wanted, and what fetching and unpacking raise.
        """
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

    async def _image(self, unpacker: Unpacking, manifest: Entry, children: Sequence[Entry], depth: int) -> None:
        layers = [child for child in children if unpacker.is_layer(child)]
        others = [child for child in children if not unpacker.is_layer(child)]
        config = next((child for child in others if unpacker.is_config(child)), None)
        if config is None:
            await together(self.visit(child, depth + 1) for child in (*others, *layers))
            return
        if unpacker.may_leave_out:
            await together(self.visit(child, depth + 1) for child in others)
            named = unpacker.with_image(layers, self._name, manifest.digest)
            await unpacker.unpack(config, named, self._fetcher.blob)
            return
        async with _Ahead(self._fetcher.blob) as ahead:
            before = [ahead.begin(self.visit(child, depth + 1)) for child in others]
            for layer in layers:
                ahead.fetch(layer)
            for task in before:
                await ahead.first(task)
            await unpacker.unpack(config, layers, ahead.fetched)


class _Ahead:
    """Fetches what unpacking will ask for from the start, in this order: the config, which says what the layers are to
    become, and the layers. What still goes on at the end is cancelled.
    """

    def __init__(self, fetch: Callable[[Entry], Coroutine[Any, Any, None]]) -> None:
        self._fetch = fetch
        self._layers: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something."""
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    def fetch(self, layer: Entry) -> None:
        """Begin a layer; one that the image has twice is fetched once."""
        if layer.digest not in self._layers:
            self._layers[layer.digest] = self.begin(self._fetch(layer))

    async def first(self, task: asyncio.Task[None]) -> None:
        """Wait for something, and raise what it or any layer fails with before it has ended."""
        waiting = {task, *self._layers.values()}
        while not task.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        task.result()

    async def fetched(self, layer: Entry) -> None:
        """Wait for a layer."""
        await asyncio.wait([self._layers[layer.digest]])
        self._layers[layer.digest].result()
