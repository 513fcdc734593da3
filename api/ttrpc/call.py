"""One call at the server: its messages in, its handler, and the frame that ends it; knows no connection."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from moored.api.ttrpc.frame import DATA, DEADLINE, END, MAX_DATA, RESPONSE, Frame, oversize_text
from moored.api.ttrpc.request_pb2 import Response
from moored.api.ttrpc.service import CallContext, Method
from moored.kernel.errors import Internal, MooredError, ResourceExhausted

log = logging.getLogger("moored.ttrpc")

StatusOf = Callable[[MooredError], tuple[int, str]]
"""Turns an error into the wire's code and text."""

Send = Callable[[Frame], Awaitable[None]]

# What the wire says of errors that are no MooredError; the rest is UNKNOWN. containerd maps Go's counterparts so.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (EOFError, 11),
    (FileExistsError, 6),
    (FileNotFoundError, 5),
    (PermissionError, 7),
    (BrokenPipeError, 9),
    (TimeoutError, 4),
)
_UNKNOWN = 2
_CANCELLED = 1
_DEADLINE = 4


class Inbox:
    """A stream's messages that came and are not read: an async iterator with a bound, for one reader.

    on_room is called after each read. Errors, of reading: Internal for bytes that are not the request type.
    """

    __slots__ = ("_on_room", "_queue", "_size", "_type", "_waiter", "ended")

    def __init__(self, type_: type[Message], size: int, on_room: Callable[[], None]) -> None:
        self._type = type_
        self._size = size
        self._on_room = on_room
        self._queue: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False

    @property
    def full(self) -> bool:
        """Whether put must not be called now."""
        return len(self._queue) >= self._size

    def put(self, data: bytes) -> None:
        """Add a message's bytes."""
        self._queue.append(data)
        self._wake()

    def end(self) -> None:
        """No more messages will come."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Message:
        while not self._queue:
            if self.ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    def take(self) -> Message:
        """The next message, which must be there.

        Errors: Internal for bytes that are not the request type.
        """
        data = self._queue.popleft()
        self._on_room()
        try:
            return self._type.FromString(data)
        except DecodeError as error:
            raise Internal(f"ttrpc: error unmarshalling payload: {error}", bare=True) from None


class Call:
    """One call's state. over: its answer is complete, whatever the handler still does."""

    __slots__ = ("_clock", "context", "expired", "inbox", "method", "over", "stream_id", "task")

    def __init__(self, stream_id: int, method: Method, context: CallContext, inbox: Inbox) -> None:
        self.stream_id = stream_id
        self.method = method
        self.context = context
        self.inbox = inbox
        self.over = False
        self.expired = False
        self.task: asyncio.Task[None] | None = None
        self._clock: asyncio.TimerHandle | None = None

    def expire_at(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        """Cancel task at the context's deadline."""
        if self.context.deadline is not None:
            self._clock = loop.call_at(self.context.deadline, self._expire, task)

    def stop_clock(self) -> None:
        """The deadline means nothing any more."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _expire(self, task: asyncio.Task[None]) -> None:
        self.expired = True
        task.cancel()


async def answer(call: Call, send: Send, status_of: StatusOf) -> Frame:
    """Run the call's handler, send what it streams, and give the frame that ends the stream.

    Errors: none of the handler's; those of send.
    Cancellation: by the call's deadline gives the frame that says so; any other passes.
    """
    try:
        return await _perform(call, send)
    except asyncio.CancelledError:
        if call.expired:
            return status_frame(call.stream_id, _DEADLINE, DEADLINE)
        if call.over or (call.task is not None and call.task.cancelling()):
            raise
        return status_frame(call.stream_id, _CANCELLED, "context canceled")
    except MooredError as error:
        return status_frame(call.stream_id, *status_of(error))
    except Exception as error:
        log.exception("ttrpc: %s/%s failed", call.context.service, call.context.method)
        return status_frame(call.stream_id, *_unexpected(error))
    finally:
        call.stop_clock()


def status_frame(stream_id: int, code: int, text: str) -> Frame:
    """The frame that ends a stream with an error; a text too long for a frame is cut."""
    response = Response()
    response.status.code = code
    response.status.message = text if len(text) < MAX_DATA // 8 else text[: MAX_DATA // 8]
    return Frame(stream_id, RESPONSE, 0, response.SerializeToString())


def _unexpected(error: Exception) -> tuple[int, str]:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), _UNKNOWN)
    text = str(error) or (DEADLINE if code == _DEADLINE else type(error).__name__)
    return code, text.encode(errors="replace").decode()  # protobuf takes no lone surrogates, file names may have them


async def _perform(call: Call, send: Send) -> Frame:
    kind, handler = call.method.kind, call.method.handler
    request: Any = call.inbox if kind.client_streams else call.inbox.take()
    result = handler(request, call.context)
    if inspect.isawaitable(result):
        result = await result
    if not kind.server_streams:
        data = Response(payload=_bytes_of(call, result)).SerializeToString()
        if len(data) > MAX_DATA:
            raise ResourceExhausted(oversize_text(len(data)), bare=True)
        return Frame(call.stream_id, RESPONSE, 0, data)
    await _stream(call, result, send)
    return Frame(call.stream_id, DATA, END)


async def _stream(call: Call, messages: AsyncIterator[Message], send: Send) -> None:
    """Send the handler's messages until it ends or nobody wants them."""
    async with contextlib.AsyncExitStack() as stack:
        if hasattr(messages, "aclose"):
            stack.push_async_callback(messages.aclose)
        async for message in messages:
            if call.over:
                return
            await send(Frame(call.stream_id, DATA, 0, _bytes_of(call, message)))


def _bytes_of(call: Call, message: object) -> bytes:
    wanted = call.method.response_type
    if not isinstance(message, wanted):
        raise TypeError(f"handler gave {type(message).__name__!r}, wanted {wanted.DESCRIPTOR.full_name!r}")
    return message.SerializeToString()
