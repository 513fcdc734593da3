"""A bounded set of threads for blocking calls, with the port's rule for cancellation: all of a call, or none of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

R = TypeVar("R")


class Stopped(Exception):
    """Raised by work that looked at its Stop and found it set; nothing has been changed."""


class Stop:
    """Tells long work in a thread that nobody waits for it any more."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the work to end."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped once asked."""
        if self._event.is_set():
            raise Stopped


class Workers:
    """The threads. Calls beyond their number queue; the queue is as long as there are callers, who all wait."""

    def __init__(self, threads: int, name: str) -> None:
        self.pool: Final = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], R], *, stop: Stop | None = None, always: bool = False) -> R:
        """Run work in a thread and give its result, or raise what it raised.

        When the caller is cancelled, work that has not begun is dropped (`always`: not even then), and work that has is
        asked to stop and awaited; CancelledError comes out when it has ended.
        """
        return await finished(self.pool.submit(work), stop=stop, always=always)

    async def close(self) -> None:
        """End the threads, after the work under way."""
        await asyncio.to_thread(self.pool.shutdown)


async def finished(work: Future[R], *, stop: Stop | None = None, always: bool = False) -> R:
    """Wait for submitted work as `Workers.run` does."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    cancelled: asyncio.CancelledError | None = None
    # One bare future: asyncio's own bridges make three and a task, which is most of the cost of a short call.
    work.add_done_callback(lambda _: _tell(loop, waiter))
    while True:
        try:
            await waiter
            break
        except asyncio.CancelledError as error:
            cancelled = error
            if not always and work.cancel():
                break
            if stop is not None:
                stop.set()
            waiter = loop.create_future()  # before the look, so that one of them sees the end
            if work.done():
                break
    if cancelled is not None:
        raise cancelled
    return work.result()


def _tell(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    """Wake who waits on a loop, from any thread; without effect if it does not wait any more, or the loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(lambda: None if waiter.done() else waiter.set_result(None))


async def to_the_end(work: Awaitable[R]) -> R:
    """Await work that is not cancelled with its caller; CancelledError comes out when the work has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # nobody else will ask for it
        raise
