"""Changes of the object database: made durable, then told, whole even if the caller goes away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from moored.kernel.payloads import Payload
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.workers import to_the_end

R = TypeVar("R")

Event: TypeAlias = tuple[str, Payload, str]
"""Topic, payload and namespace."""


class Writes:
    """Runs updates; of each that is durable it tells `changed` and then the subscribers of events, in commit order.

    changed   called on the loop, with True when something was deleted
    exchange  None where nobody wants events
    """

    def __init__(self, *, database: Database, exchange: Exchange | None, changed: Callable[[bool], None]) -> None:
        self._database = database
        self._exchange = exchange
        self._changed = changed

    async def run(
        self,
        change: Callable[[Bucket], R],
        event: Callable[[R], Event] | None = None,
        *,
        deletes: bool = False,
    ) -> R:
        """Give the result of `change`, after the event that `event` makes of it was sent.

        Raises what `change`, the database and the exchange raise; the change is undone for the first two only.
        """
        return await to_the_end(self.run_within(change, event, deletes=deletes))

    async def run_within(
        self,
        change: Callable[[Bucket], R],
        event: Callable[[R], Event] | None = None,
        *,
        deletes: bool = False,
    ) -> R:
        """As run, within work that goes on to its end itself, and so without a task of its own."""
        result = await self._database.update(change)
        await self.tell(event(result) if event is not None and self._exchange is not None else None, deletes=deletes)
        return result

    async def tell(self, event: Event | None, *, deletes: bool = False) -> None:
        """Tell of an update that is durable."""
        self._changed(deletes)
        if self._exchange is not None and event is not None:
            await self._exchange.publish(*event)


async def look(database: Database, read: Callable[[Bucket], R]) -> R:
    """Give the result of `read` on the root of a view, run beside the loop: for what may read very many records."""

    def run() -> R:
        with database.view() as root:
            return read(root)

    return await to_the_end(asyncio.to_thread(run))
