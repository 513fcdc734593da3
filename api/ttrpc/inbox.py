"""A stream's received messages: a queue with a bound between the connection, which never waits, and one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from moored.kernel.errors import Internal

M_co = TypeVar("M_co", bound=Message, covariant=True)


class Inbox(Generic[M_co]):
    """An async iterator of the messages, for one reader at a time; on_room is called after each read.

    Errors, of reading: Internal for bytes that are not the type; after the last message the error given to `end`.
    Cancellation: a read that is cancelled took nothing.
    """

    __slots__ = ("_on_room", "_queue", "_size", "_type", "_waiter", "ended", "error")

    def __init__(self, type_: type[M_co], size: int, on_room: Callable[[], None]) -> None:
        self._type = type_
        self._size = size
        self._on_room = on_room
        self._queue: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        self.error: Exception | None = None

    @property
    def full(self) -> bool:
        """Whether put must not be called now."""
        return len(self._queue) >= self._size

    def put(self, data: bytes) -> None:
        """Add a message's bytes."""
        self._queue.append(data)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """No more messages will come; the first end counts."""
        if not self.ended:
            self.ended = True
            self.error = error
            self._wake()

    def drop(self) -> None:
        """Forget what is queued: nobody will read it."""
        self._queue.clear()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Inbox[M_co]:
        return self

    async def __anext__(self) -> M_co:
        while not self._queue:
            if self.error is not None:
                raise self.error
            if self.ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    def take(self) -> M_co:
        """The next message, which must be there.

        Errors: Internal for bytes that are not the type.
        """
        data = self._queue.popleft()
        self._on_room()
        return parse(self._type, data)


def parse(type_: type[M_co], data: bytes) -> M_co:
    """The message in a payload.

    Errors: Internal, with the wire's text, for bytes that are not of the type.
    """
    try:
        return type_.FromString(data)
    except DecodeError as error:
        raise Internal(f"ttrpc: error unmarshalling payload: {error}", bare=True) from None
