"""The blobs of an image's layers on their way into the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeAlias

from moored.kernel.imagespec.documents import Entry

Fetch: TypeAlias = Callable[[Entry], Awaitable[None]]
"""Brings one blob, and returns when it is there."""


class Fetching:
    """All layers of an image, fetched from the first that is asked for on; what is under way ends with the block."""

    def __init__(self, layers: Sequence[Entry], fetch: Fetch) -> None:
        self._layers = layers
        self._fetch = fetch
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._failed.cancel()

    async def of(self, number: int) -> None:
        """Wait for one layer, and raise what any of the layers has failed with."""
        for other in range(number, len(self._layers)):
            if other not in self._tasks:
                self._tasks[other] = asyncio.create_task(self._one(self._layers[other]))
        await asyncio.wait([self._tasks[number], self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()
        self._tasks[number].result()

    async def _one(self, layer: Entry) -> None:
        try:
            await self._fetch(layer)
        except Exception as error:
            if not self._failed.done():
                self._failed.set_exception(error)
                self._failed.exception()  # whoever waits raises it; nobody may
            raise

    async def all(self) -> None:
        """Wait for all layers."""
        for number in range(len(self._layers)):
            await self.of(number)
