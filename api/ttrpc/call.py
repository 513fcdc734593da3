"""One call at the server: its messages in, its handler, and the frame that ends it; knows no connection."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from moored.api.ttrpc.frame import DATA, DEADLINE, END, MAX_DATA, RESPONSE, Frame, oversize_text
from moored.api.ttrpc.inbox import Inbox
from moored.api.ttrpc.request_pb2 import Response
from moored.api.ttrpc.service import CallContext, Method
from moored.kernel.errors import MooredError, ResourceExhausted

log = logging.getLogger("moored.ttrpc")

StatusOf = Callable[[Exception], tuple[int, str]]
"""Turns an error into the wire's code and text; it must cope with any exception."""

Send = Callable[[Frame], Awaitable[None]]

_CANCELLED = 1
_DEADLINE = 4


class Call:
    """One call's state. over: its answer is complete, whatever the handler still does."""

    __slots__ = ("_clock", "context", "expired", "inbox", "method", "over", "stream_id", "task")

    def __init__(self, stream_id: int, method: Method, context: CallContext, inbox: Inbox[Message]) -> None:
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
        return status_frame(call.stream_id, *status_of(error))
    finally:
        call.stop_clock()


def status_frame(stream_id: int, code: int, text: str) -> Frame:
    """The frame that ends a stream with an error; a text too long for a frame is cut."""
    response = Response()
    response.status.code = code
    # Texts may quote file names, whose undecodable bytes protobuf refuses.
    response.status.message = text[: MAX_DATA // 8].encode(errors="replace").decode()
    return Frame(stream_id, RESPONSE, 0, response.SerializeToString())


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
