"""What every garbage collection `Scheduler` does; each check takes one over an object database of its own.

    async def run(check):
        objects = Collecting()
        async with open_it(objects) as scheduler:      # that gives it as the plugin of METADATA
            await check(scheduler, objects)

The plain asserts need no test tool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from moored.kernel.conformance import fails_with
from moored.kernel.errors import Unavailable, Unknown
from moored.kernel.ports.objects import Collection, Scheduler


class Collecting:
    """As much of `Objects` as a scheduler sees, with nothing in it; a collection sets `begins` and waits for `ends`."""

    def __init__(self) -> None:
        self.begun = self.running = self.most = 0
        self.fails = False
        self.begins, self.ends = asyncio.Event(), asyncio.Event()
        self.ends.set()
        self.listeners: list[Callable[[bool], None]] = []
        self.namespaces = self.images = self.leases = _Empty()

    def hold(self) -> None:
        """Let the next collection last until `ends` is set, and `begins` tell that it has begun."""
        self.begins.clear()
        self.ends.clear()

    async def collect(self) -> Collection:
        """Collect nothing, or fail."""
        self.begun += 1
        self.running += 1
        self.begins.set()
        self.most = max(self.most, self.running)
        try:
            await self.ends.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        if self.fails:
            raise Unavailable("the database is gone")
        return Collection(pause_seconds=0.001, seconds=0.001, removed={"content": self.begun})

    def on_change(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """See Objects."""
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)


class _Empty:
    async def list(self, *_: Any) -> list[Any]:
        return []


Check: TypeAlias = Callable[[Scheduler, Collecting], Awaitable[None]]


async def check_collection_on_demand_is_a_new_one(scheduler: Scheduler, objects: Collecting) -> None:
    """Its result is given, and each request has one that began after it."""
    before = objects.begun
    first = await scheduler.collect_now()
    second = await scheduler.collect_now()
    assert before < first.removed["content"] < second.removed["content"] <= objects.begun


async def check_request_during_a_collection_gets_the_next(scheduler: Scheduler, objects: Collecting) -> None:
    """What is under way may have begun before the caller's last removal."""
    objects.hold()
    first = asyncio.ensure_future(scheduler.collect_now())
    await objects.begins.wait()
    under_way = objects.begun
    late = [asyncio.ensure_future(scheduler.collect_now()) for _ in range(5)]
    await asyncio.sleep(0.01)
    objects.ends.set()
    await first
    assert all(result.removed["content"] > under_way for result in await asyncio.gather(*late))


async def check_collections_do_not_overlap(scheduler: Scheduler, objects: Collecting) -> None:
    """However many ask."""
    await asyncio.gather(*(scheduler.collect_now() for _ in range(20)))
    assert objects.most == 1


async def check_failure_is_told_and_the_next_one_succeeds(scheduler: Scheduler, objects: Collecting) -> None:
    """To all who wait."""
    objects.fails = True
    calls = [asyncio.ensure_future(scheduler.collect_now()) for _ in range(3)]
    await asyncio.wait(calls)
    for call in calls:
        await fails_with(Unknown, call, "gc failed")
    objects.fails = False
    await scheduler.collect_now()


async def check_caller_who_is_cancelled_cancels_nobody_else(scheduler: Scheduler, objects: Collecting) -> None:
    """Those that wait beside it get their collection."""
    objects.hold()
    gone, stays = (asyncio.ensure_future(scheduler.collect_now()) for _ in range(2))
    await objects.begins.wait()
    gone.cancel()
    await asyncio.wait([gone])
    objects.ends.set()
    await stays


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_") and callable(value)
)
"""All checks, for `for check in CHECKS: await check(scheduler, objects)`."""
