"""Work that is done whole or not at all: blocking calls in a bounded set of threads, and cancellation that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from moored.kernel.errors import Unavailable
from moored.kernel.workers import Stop, finished

R = TypeVar("R")


class Workers:
    """The threads, and the calls that use them. Work beyond the threads queues, one piece for each caller."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool: Final = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._calls: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    def run(self, work: Callable[[], R]) -> Coroutine[Any, Any, R]:
        """Run work in a thread, from now on; only inside of `whole`, which sees to its end."""
        return finished(self._pool.submit(work), always=True)

    async def whole(self, call: Callable[[Stop], Coroutine[Any, Any, R]]) -> R:
        """Await a call to its end, even if the caller is cancelled; it is asked to stop then, and may.

        What `call` does before it gives its coroutine is done at once, and not undone if it raises.
        Raises Unavailable once closed, and CancelledError after the call has ended.
        """
        self.check_open()
        stop = Stop()
        task = asyncio.get_running_loop().create_task(call(stop))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
                stop.set()
        if cancelled is None:
            return task.result()
        if not task.cancelled():
            task.exception()  # taken, so that asyncio does not report it as forgotten
        raise cancelled

    def check_open(self) -> None:
        """Raise Unavailable once closed."""
        if self._closing is not None:
            raise Unavailable("the snapshotter is closed")

    async def close(self) -> None:
        """Refuse further calls and wait for those under way; again is harmless."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        while self._calls:
            await asyncio.wait(set(self._calls))
        await asyncio.to_thread(self._pool.shutdown)
