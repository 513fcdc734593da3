"""The ttrpc client: many calls at once over one connection, unary and streaming.

Responses come in any order. Nothing on the wire cancels a call: a caller that gives up forgets the stream, and what
comes late is dropped. When the connection is gone, pending and later calls fail with Unavailable `ttrpc: closed`.
Source: `contracts/ttrpc.md`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from moored.api.errors import from_status
from moored.api.ttrpc.frame import (
    CLOSED,
    DATA,
    DEADLINE,
    END,
    MAX_STREAM_ID,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Event,
    Frame,
    Oversize,
    encode,
    oversize_text,
)
from moored.api.ttrpc.inbox import Inbox, parse
from moored.api.ttrpc.link import Limits, Link
from moored.api.ttrpc.request_pb2 import Request, Response
from moored.api.ttrpc.service import Kind
from moored.kernel.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    MooredError,
    ResourceExhausted,
    Unavailable,
    Unknown,
)

__all__ = ["Client", "ClientStream", "ErrorOf", "Kind", "Limits", "Metadata", "connect"]

log = logging.getLogger("moored.ttrpc")

ErrorOf = Callable[[int, str], MooredError]
"""Turns the wire's code and text into an error."""
Metadata = Mapping[str, Sequence[str]]
"""Keys (sent in lower case) with their values in order."""
M = TypeVar("M", bound=Message)


async def connect(
    address: str | socket.socket,
    *,
    timeout: float = 5.0,  # noqa: ASYNC109 - so that no caller forgets it
    limits: Limits | None = None,
    status_to_error: ErrorOf = from_status,
) -> Client:
    """A client on a unix socket's path (abstract if it starts with a zero byte) or on a connected stream socket.

    timeout: seconds to connect. status_to_error makes errors of the answers' statuses.
    Errors: Unavailable, with the OSError as its cause; DeadlineExceeded.
    """
    loop = asyncio.get_running_loop()
    limits = limits or Limits()
    try:
        async with asyncio.timeout(timeout):
            if isinstance(address, str):
                _, link = await loop.create_unix_connection(lambda: _ClientLink(limits), address)
            else:
                _, link = await loop.create_connection(lambda: _ClientLink(limits), sock=address)
    except TimeoutError:
        raise DeadlineExceeded(f"ttrpc: dial {address!r}: no connection within {timeout:g} seconds") from None
    except OSError as error:
        raise Unavailable(f"ttrpc: dial {address!r}: {error}") from error
    return Client(link, status_to_error)


class Client:
    """One connection's calls; made by `connect`. An async context manager that closes on exit.

    Concurrency: any number of calls up to `Limits.max_streams`, from tasks of one event loop.
    Errors of every call: what status_to_error makes of the answer; Unavailable `ttrpc: closed`; ResourceExhausted for
    messages above 4 MiB either way and for more calls than the limit; Internal for answers that do not parse; Unknown
    for frames that do not fit the kind of call.
    """

    def __init__(self, link: _ClientLink, status_to_error: ErrorOf) -> None:
        self._link = link
        self._error_of = status_to_error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether calls can only fail: we closed, or the server has gone."""
        return self._link.closed

    @property
    def pending(self) -> int:
        """Calls that wait for their answer."""
        return len(self._link.receivers)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed by either side."""
        await self._link.wait_lost()

    async def close(self) -> None:
        """Close the connection; pending calls fail. May be called again."""
        self._link.close()
        await self._link.wait_lost()

    async def unary(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes on the wire
        metadata: Metadata | None = None,
    ) -> M:
        """Send one message and wait for the one that answers it, for timeout seconds, which the server is told.

        Errors: DeadlineExceeded and the class's.
        Cancellation: the stream is forgotten; whether the server acts is not known.
        """
        call = _UnaryCall()
        try:
            async with asyncio.timeout(timeout) as clock:
                await self._link.writable()
                data = _request(service, method, request, _left(clock), metadata)
                self._link.open(call, 0, data)
                payload = _payload(_response(await call.answer), self._error_of)
        except TimeoutError:
            raise DeadlineExceeded(DEADLINE, bare=True) from None
        finally:
            self._link.forget(call.stream_id)
        return parse(response_type, payload)

    async def stream(
        self,
        service: str,
        method: str,
        kind: Kind,
        response_type: type[M],
        request: Message | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes on the wire
        metadata: Metadata | None = None,
    ) -> ClientStream[M]:
        """Open a stream of the kind. request is the one message of a server stream; for others it stays None.

        timeout: seconds for the whole stream, which the server is told. (containerd sends neither timeout nor metadata
        on streams; servers heed both.)
        Errors: DeadlineExceeded and the class's.
        Cancellation: nothing was sent.
        """
        stream = ClientStream(self._link, kind, response_type, self._error_of)
        try:
            async with asyncio.timeout(timeout) as clock:
                await self._link.writable()
                left = _left(clock)
        except TimeoutError:
            raise DeadlineExceeded(DEADLINE, bare=True) from None
        flags = REMOTE_OPEN if kind.client_streams else REMOTE_CLOSED
        self._link.open(stream, flags, _request(service, method, request, left, metadata))
        if left is not None:
            stream.expire_in(left)
        return stream


class ClientStream(Generic[M]):
    """An open stream: send, close_send, and recv or iteration. Close it, or use it as an async context manager.

    One task may read while others send. An unread stream holds up the whole connection once `Limits.queue` messages
    wait, and fails with ResourceExhausted after `Limits.stall_timeout`.
    """

    def __init__(self, link: _ClientLink, kind: Kind, response_type: type[M], error_of: ErrorOf) -> None:
        self.stream_id = 0
        self._link = link
        self._kind = kind
        self._error_of = error_of
        self._inbox: Inbox[M] = Inbox(response_type, link.limits.queue, lambda: link.release(self.stream_id))
        self._clock: asyncio.TimerHandle | None = None
        self._sends = kind.client_streams

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def send(self, message: Message) -> None:
        """Send a message, waiting until the server has taken enough of what came before.

        Errors: FailedPrecondition after close_send, after the server's end, and where the client does not stream; the
        stream's error if it has failed; ResourceExhausted (over 4 MiB; nothing is sent, the stream goes on).
        Cancellation: nothing was sent.
        """
        await self._send(Frame(self.stream_id, DATA, 0, message.SerializeToString()))

    async def close_send(self) -> None:
        """Tell the server that no more messages come; does nothing if it knows or if the stream is over.

        Cancellation: nothing was told.
        """
        if self._sends and not self._inbox.ended:
            await self._send(Frame(self.stream_id, DATA, END))
            self._sends = False

    async def recv(self) -> M | None:
        """The next message; None after the last. The single response of a client stream is a message too.

        Errors: the class's, after the messages that came before.
        Cancellation: no message is lost.
        """
        return await anext(self._inbox, None)

    async def finish(self) -> M:
        """End our half and give the response of a client stream.

        Errors: those of close_send and recv; Unknown if the server ended without a response.
        """
        await self.close_send()
        response = await self.recv()
        if response is None:
            raise Unknown("stream ended without a response, wanted one message")
        return response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        return await anext(self._inbox)

    def close(self) -> None:
        """Forget the stream, read or not; a server that still sends is not told, for ttrpc has no words for it."""
        self.fail(FailedPrecondition("ttrpc: stream closed", bare=True))
        self._inbox.drop()

    async def _send(self, frame: Frame) -> None:
        data = encode(frame)
        await self._link.writable()
        if self._inbox.error is not None:
            raise self._inbox.error
        if self._inbox.ended or not self._sends:
            raise FailedPrecondition("ttrpc: stream closed", bare=True)
        self._link.write(data)

    # What the connection calls.

    def take(self, event: Event) -> bool:
        """Take a frame of this stream; False if there is no room for it."""
        if isinstance(event, Oversize):
            self.fail(_oversize(event))
            return True
        ends = event.kind == RESPONSE or bool(event.flags & REMOTE_CLOSED)
        try:
            payload = self._payload_of(event)
        except MooredError as error:
            self.fail(error)
            return True
        if payload is not None:
            if self._inbox.full:
                return False
            self._inbox.put(payload)
        if ends:
            self.fail(None)
        return True

    def _payload_of(self, frame: Frame) -> bytes | None:
        """The message in a frame, None if it carries none."""
        if frame.kind == RESPONSE:
            payload = _payload(_response(frame), self._error_of)
            # A stream that ends with a plain "ok" has no last message.
            return payload if payload or not self._kind.server_streams else None
        if not self._kind.server_streams:
            raise Unknown("received data from non-streaming server: protocol error", bare=True)
        return None if frame.flags & NO_DATA else frame.data

    def fail(self, error: Exception | None) -> None:
        """The stream is over; without an error it has ended well."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        self._inbox.end(error)
        self._link.forget(self.stream_id)

    def expire_in(self, seconds: float) -> None:
        """Fail the stream after that time."""
        error = DeadlineExceeded(DEADLINE, bare=True)
        self._clock = asyncio.get_running_loop().call_later(seconds, self.fail, error)


class _UnaryCall:
    """Waits for one frame."""

    __slots__ = ("answer", "stream_id")

    def __init__(self) -> None:
        self.stream_id = 0
        self.answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def take(self, event: Event) -> bool:
        if self.answer.done():
            return True
        if isinstance(event, Oversize):
            self.answer.set_exception(_oversize(event))
        else:
            self.answer.set_result(event)
        return True

    def fail(self, error: Exception | None) -> None:
        if error is not None and not self.answer.done():
            self.answer.set_exception(error)


class _ClientLink(Link):
    """Gives each stream its frames."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.limits = limits
        self.receivers: dict[int, _UnaryCall | ClientStream[Message]] = {}
        self._next_id = 1

    def open(self, receiver: _UnaryCall | ClientStream[M], flags: int, data: bytes) -> None:
        """Choose an id and write the request, with nothing between: ids must rise on the wire."""
        if self.closed:
            raise Unavailable(CLOSED, bare=True)
        if len(self.receivers) >= self.limits.max_streams:
            raise ResourceExhausted(f"connection has {self.limits.max_streams} calls under way, the most allowed")
        if self._next_id > MAX_STREAM_ID:
            raise Unavailable("the connection's stream ids are used up, wanted a new connection")
        frame = encode(Frame(self._next_id, REQUEST, flags, data))
        receiver.stream_id = self._next_id
        self._next_id += 2
        self.receivers[receiver.stream_id] = receiver  # type: ignore[assignment] # only take and fail are called
        self.write(frame)

    def forget(self, stream_id: int) -> None:
        if self.receivers.pop(stream_id, None) is not None:
            self.release(stream_id)

    def on_event(self, event: Event) -> bool:
        receiver = self.receivers.get(event.stream_id)
        if receiver is None:
            log.debug("ttrpc: dropped a frame for stream %d, which is over", event.stream_id)
            return True
        if isinstance(event, Frame) and event.kind not in {RESPONSE, DATA}:
            return True  # for later versions of the protocol
        return receiver.take(event)

    def on_stalled(self, event: Event) -> None:
        receiver = self.receivers.get(event.stream_id)
        if receiver is not None:
            receiver.fail(ResourceExhausted("ttrpc: stream buffer full", bare=True))

    def on_closed(self, error: Exception | None) -> None:
        for receiver in tuple(self.receivers.values()):
            gone = Unavailable(CLOSED, bare=True)
            gone.__cause__ = error
            receiver.fail(gone)
        self.receivers.clear()


def _left(clock: asyncio.Timeout) -> float | None:
    """Seconds left on a clock, None if it has no end."""
    when = clock.when()
    if when is None:
        return None
    left = when - asyncio.get_running_loop().time()
    if left <= 0:
        raise TimeoutError
    return left


def _request(
    service: str, method: str, message: Message | None, timeout: float | None, metadata: Metadata | None
) -> bytes:
    request = Request(service=service, method=method)
    if message is not None:
        request.payload = message.SerializeToString()
    if timeout is not None:
        request.timeout_nano = max(1, int(min(timeout, 9e9) * 1e9))  # 0 says no timeout; 64 bits hold 9.2e9 s
    for key, values in (metadata or {}).items():
        for value in values:
            request.metadata.add(key=key.lower(), value=value)
    return request.SerializeToString()


def _response(frame: Frame) -> Response:
    if frame.kind != RESPONSE:
        raise Unknown('unexpected "data" message received: protocol error', bare=True)
    try:
        return Response.FromString(frame.data)
    except DecodeError as error:
        raise Internal(f"ttrpc: error unmarshalling response: {error}", bare=True) from None


def _payload(response: Response, error_of: ErrorOf) -> bytes:
    if response.HasField("status") and response.status.code:
        raise error_of(response.status.code, response.status.message)
    return response.payload


def _oversize(event: Oversize) -> ResourceExhausted:
    return ResourceExhausted(oversize_text(event.length), bare=True)
