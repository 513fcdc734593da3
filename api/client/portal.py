"""The way from threads without an event loop to a loop in a thread of its own: what makes the client's sync twin.

    caller's thread --call, run, iterate, block--> loop's thread
    twin (moored.api.client.sync, generated) --holds--> asynchronous object

Every iteration and every context manager has one task for all of its steps, since asyncio's own tools want that.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from moored.kernel.errors import FailedPrecondition

R = TypeVar("R")
S = TypeVar("S")

_END: Final = object()


class Portal:
    """An event loop in a thread. Any threads may call; a call waits for its result.

    Cancellation: a KeyboardInterrupt in a waiting thread cancels what it waits for.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        loop = asyncio.new_event_loop()
        self._loop = loop
        self._thread = threading.Thread(target=_serve, args=(loop,), name="moored client", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancel what still runs, and end the thread."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def call(self, work: Callable[[], Awaitable[R]]) -> R:
        """Await on the loop what `work` gives, and give its result, or raise its error."""

        async def main() -> R:
            return await work()

        return _result(self._submit(main()))

    def run(self, work: Callable[[], R]) -> R:
        """Call `work` on the loop's thread, within a running loop."""

        async def main() -> R:
            return work()

        return _result(self._submit(main()))

    def iterate(self, make: Callable[[], AsyncIterator[R]]) -> Iterator[R]:
        """Give the items of an asynchronous iterator; when the iteration is closed or forgotten, so is the iterator."""
        return self.mapped(make, _same)

    def mapped(self, make: Callable[[], AsyncIterator[R]], wrap: Callable[[R], S]) -> Iterator[S]:
        """Do as `iterate`, with each item wrapped."""
        steps = _Steps(make)
        try:
            while True:
                item = self.call(steps.next)
                if item is _END:
                    return
                yield wrap(item)
        finally:
            if self._loop is not None:
                self.call(steps.close)

    def block(self, make: Callable[[], AbstractAsyncContextManager[R]]) -> AbstractContextManager[R]:
        """Give an asynchronous context manager as a plain one."""
        return self.mapped_block(make, _same)

    @contextmanager
    def mapped_block(self, make: Callable[[], AbstractAsyncContextManager[R]], wrap: Callable[[R], S]) -> Generator[S]:
        """Do as `block`, with the value wrapped."""
        inside = _Inside(make)
        value = self.call(inside.enter)
        try:
            yield wrap(value)
        except BaseException as error:
            if not self._left(inside, error):
                raise
        else:
            self._left(inside, None)

    def _left(self, inside: _Inside[Any], error: BaseException | None) -> bool:
        if error is None:
            return self.call(lambda: inside.leave(None, None, None))
        return self.call(lambda: inside.leave(type(error), error, error.__traceback__))

    def _submit(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        loop = self._loop
        if loop is None or threading.current_thread() is self._thread:
            work.close()
            where = "of its own callbacks" if loop is not None else "place outside of its 'with' block"
            raise FailedPrecondition(
                f"client is called from a {where}, wanted a call inside of it, from another thread"
            )
        return asyncio.run_coroutine_threadsafe(work, loop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _result(future: Future[R]) -> R:
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class _Steps(Generic[R]):
    """An iteration, one step when asked, all in one task."""

    def __init__(self, make: Callable[[], AsyncIterator[R]]) -> None:
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._asked: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()

    async def next(self) -> Any:
        """Give the next item, `_END` at the end."""
        if self._task is None:
            self._task = asyncio.create_task(self._drive())
        if self._task.done():
            return _END
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _drive(self) -> None:
        iterator = self._make()
        try:
            while True:
                answer = await self._asked.get()
                try:
                    item = await anext(iterator, _END)
                except BaseException as error:
                    if not answer.done():
                        answer.set_exception(error)
                    raise
                if not answer.done():
                    answer.set_result(item)
                if item is _END:
                    return
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            # Its error was given to who asked for the item.
            await asyncio.gather(self._task, return_exceptions=True)


class _Inside(Generic[R]):
    """A context manager that is entered and left in one task."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[R]]) -> None:
        self._make = make
        self._task: asyncio.Task[bool] | None = None
        self._left: asyncio.Future[tuple[Any, Any, Any]] | None = None

    async def enter(self) -> R:
        """Enter and give the value."""
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[R] = loop.create_future()
        self._left = loop.create_future()
        self._task = asyncio.create_task(self._drive(entered, self._left))
        try:
            either: list[asyncio.Future[Any]] = [entered, self._task]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            raise
        if self._task.done():
            await self._task  # raises
        return entered.result()

    async def _drive(self, entered: asyncio.Future[R], left: asyncio.Future[tuple[Any, Any, Any]]) -> bool:
        manager = self._make()
        entered.set_result(await manager.__aenter__())
        return bool(await manager.__aexit__(*await left))

    async def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Leave with an error or without; whether the manager took the error."""
        assert self._left is not None
        assert self._task is not None
        self._left.set_result((kind, error, trace))
        try:
            return await self._task
        except BaseException as raised:
            if raised is error:
                return False
            raise


def _same(value: R) -> Any:
    return value


def fed(source: Path | bytes | Iterable[bytes]) -> Any:
    """Give an iterable as an asynchronous one, which takes its items in other threads; other things as they are."""
    return source if isinstance(source, (Path, bytes)) else _feed(iter(source))


async def _feed(source: Iterator[bytes]) -> AsyncGenerator[bytes]:
    while (item := await asyncio.to_thread(next, source, None)) is not None:
        yield item


def awaited(function: Path | Callable[[bytes], object]) -> Any:
    """Give a function as a coroutine function, which calls it in other threads; other things as they are."""
    if isinstance(function, Path):
        return function
    called = function

    async def call(data: bytes) -> None:
        await asyncio.to_thread(called, data)

    return call


class Twin:
    """An asynchronous object as threads see it. Any threads may use it; calls wait for their results."""

    _portal: Portal
    _async: Any

    @classmethod
    def _of(cls, portal: Portal, inner: Any) -> Self:
        made = cls.__new__(cls)
        made._portal, made._async = portal, inner
        return made

    @classmethod
    def _maybe(cls, portal: Portal, inner: Any) -> Self | None:
        return None if inner is None else cls._of(portal, inner)
