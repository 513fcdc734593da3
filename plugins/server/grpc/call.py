"""One call as its handler knows it: what grpc.aio documents of a servicer's context, over a stream of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import grpc.aio

from moored.api.http2 import DATA, NO_ERROR, head, header_frames, reset
from moored.kernel.errors import Cancelled
from moored.plugins.server.grpc.headers import (
    OK_HEADERS,
    OK_TRAILERS,
    Metadata,
    Request,
    encoded,
    only_trailers,
    trailers,
)
from moored.plugins.server.grpc.messages import PREFIX, Incoming

if TYPE_CHECKING:
    from moored.plugins.server.grpc.calls import Calls, Method
    from moored.plugins.server.grpc.connection import Connection

YIELD_BYTES: Final = 1 << 16
"""How much one call sends before others get their turn."""
EXPIRING_SECONDS: Final = 0.05
"""A client that gives up so shortly before the deadline has seen it pass: its clock for it started earlier."""

_DEADLINE_EXCEEDED: Final = 4
_CANCELLED: Final = 1
_UNAVAILABLE: Final = 14


class Call(grpc.aio.ServicerContext[Any, Any]):
    """The context of a handler. Used on the event loop of its connection only.

    expired   its deadline has passed
    cut       the server stops
    gone      nothing that is sent would arrive: the client gave up, or everything was said
    over      its end was reached, and whoever waited for that has been told
    """

    def __init__(
        self,
        link: Connection,
        calls: Calls,
        number: int,
        *,
        request: Request,
        method: Method,
        in_window: int,
    ) -> None:
        self.number = number
        self.request = request
        self.method = method
        self.window = 0
        """What may be sent, bytes, beside what every stream of its connection may send from the start."""
        self.in_window = in_window
        """What the client may send, bytes."""
        self.returned = 0
        """Bytes of the stream's window that were given back and not announced yet."""
        self.incoming = Incoming(request.coding, calls.max_receive)
        self.task: asyncio.Task[None] | None = None
        self.expired = False
        self.cut = False
        self.gone = False
        self.over = False
        self.status: grpc.StatusCode | int | None = None
        self.text = ""
        self._link = link
        self._calls = calls
        self._trailing: Metadata = ()
        self._headers_sent = False
        self._given_up = False
        self._reader: asyncio.Future[None] | None = None
        self._writers = 0
        self._turn: asyncio.Lock | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if request.timeout is not None:
            self._until = link.loop.time() + request.timeout
            self._timer = link.loop.call_at(self._until, self._expire)

    # --- messages -----------------------------------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF. Raises Internal for one that does not parse."""
        raw = await self.read_raw()
        return grpc.aio.EOF if raw is None else self._calls.decode(self.method, raw)

    async def read_raw(self) -> bytes | None:
        """The next message's bytes, None after the last. Raises what is wrong with it."""
        incoming = self.incoming
        while not incoming:
            if incoming.error is not None:
                raise incoming.error
            if incoming.ended:
                return None
            self._reader = self._link.loop.create_future()
            await self._reader
        raw, paid = incoming.take()
        self._link.give_back(self, paid)
        return raw

    async def messages(self) -> AsyncGenerator[Any]:
        """All messages up to the end of them."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def heard(self) -> None:
        """Tell a waiting reader that something has come."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def write(self, message: Any) -> None:
        """Send one message; waits until the client has room for it. Raises Cancelled after the end of the call."""
        await self.write_raw(self._calls.encode(self.method, message))

    async def write_raw(self, raw: bytes) -> None:
        """Send one message's bytes, see `write`."""
        size = len(raw) + PREFIX.size
        link = self._link
        if self._writers or not link.has_room(self, size):
            await self._write_slowly(PREFIX.pack(0, len(raw)) + raw)
            return
        if not self._headers_sent:
            self._send_headers()
        self.window -= size
        link.window -= size
        if link.put(head(size, DATA, 0, self.number) + PREFIX.pack(0, len(raw)) + raw) > YIELD_BYTES:
            link.flush()
            await asyncio.sleep(0)

    async def answer(self, raw: bytes) -> None:
        """Send the one message of a call and end it well, all at once where there is room."""
        size = len(raw) + PREFIX.size
        link, number = self._link, self.number
        if self._headers_sent or self._trailing or self._writers or not link.has_room(self, size):
            await self._write_slowly(PREFIX.pack(0, len(raw)) + raw)
            return
        link.window -= size
        start = header_frames(number, OK_HEADERS, end=False) + head(size, DATA, 0, number) + PREFIX.pack(0, len(raw))
        link.put(start + raw + header_frames(number, OK_TRAILERS, end=True))
        self._over()

    async def _write_slowly(self, data: bytes) -> None:
        """Send a framed message piece by piece, as there is room; several tasks of one call take turns."""
        self._turn = self._turn or asyncio.Lock()
        link, left = self._link, memoryview(data)
        self._writers += 1
        try:
            async with self._turn:
                if not self._headers_sent and not self.gone:
                    self._send_headers()
                while left:
                    size = link.room(self, len(left))
                    if not size:
                        if self.gone:
                            raise Cancelled(f"call {self.method.path!r} has ended")
                        await link.await_room(self)
                        continue
                    self.window -= size
                    link.window -= size
                    link.put(head(size, DATA, 0, self.number))
                    if link.put(left[:size]) > YIELD_BYTES:
                        link.flush()
                        await asyncio.sleep(0)
                    left = left[size:]
        finally:
            self._writers -= 1

    # --- headers and status -------------------------------------------------------------------------------------------

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the headers of the answer now."""
        if not self._headers_sent and not self.gone:
            self._send_headers(tuple(initial_metadata))

    def _send_headers(self, metadata: Metadata = ()) -> None:
        self._headers_sent = True
        self._link.put(header_frames(self.number, OK_HEADERS + encoded(metadata), end=False))

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with a status; raises grpc.aio.AbortError to leave the handler."""
        self.set_trailing_metadata((*self._trailing, *trailing_metadata))
        self.status, self.text = code, details
        raise grpc.aio.AbortError("locally aborted")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """See `abort`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Send these with the status. Raises what is wrong with them here, as the call could not be ended with them."""
        found = tuple(trailing_metadata)
        encoded(found)
        self._trailing = found

    def trailing_metadata(self) -> Any:
        """What will be sent with the status."""
        return self._trailing

    def set_code(self, code: Any) -> None:
        """End with this code unless the handler raises."""
        self.status = code

    def set_details(self, details: str) -> None:
        """End with this text unless the handler raises."""
        self.text = details

    def code(self) -> Any:
        """What `set_code` was told, OK before."""
        return grpc.StatusCode.OK if self.status is None else self.status

    def details(self) -> str:
        """What `set_details` was told."""
        return self.text

    def set_compression(self, compression: Any) -> None:
        """Take note of nothing: a client on this host, or one that asks for a container, is better off without."""

    def disable_next_message_compression(self) -> None:
        """See `set_compression`."""

    # --- the client ---------------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Any:
        """The headers of the request, without those of the transport."""
        return self.request.metadata

    def peer(self) -> str:
        """Where the client is, as gRPC writes it: `unix:`, `ipv4:127.0.0.1:4000`."""
        return self._link.peer

    def peer_identities(self) -> Sequence[bytes] | None:
        """The common names of the client's certificate, None without one."""
        return [name.encode() for name in self._link.common_names] or None

    def peer_identity_key(self) -> str | None:
        """What `peer_identities` are."""
        return "x509_common_name" if self._link.common_names else None

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """The common names of the client's certificate."""
        found = self.peer_identities()
        return {"x509_common_name": found} if found else {}

    # --- the end ------------------------------------------------------------------------------------------------------

    def time_remaining(self) -> float | None:  # type: ignore[override]  # as grpc.aio's own behaves
        """Seconds to the deadline, None without one."""
        return None if self._until is None else max(0.0, self._until - self._link.loop.time())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this context at the end of the call."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Whether the client gave up, or its deadline passed."""
        return self.expired or self._given_up

    def done(self) -> bool:
        """Whether the call has ended."""
        return self.gone

    def _expire(self) -> None:
        self.expired = True
        self.interrupt()

    def interrupt(self) -> None:
        """Cancel the handler; a call whose handler has not begun ends here."""
        if self.task is None:
            self.end(*self.interruption())
        else:
            self.task.cancel()

    def interruption(self) -> tuple[int, str]:
        """The status of a handler that was cancelled from outside."""
        if self.expired:
            return _DEADLINE_EXCEEDED, "context deadline exceeded"
        if self.cut:
            return _UNAVAILABLE, "the daemon stops"
        return _CANCELLED, "context canceled"

    def lost(self) -> None:
        """The client has gone: nothing is sent any more, and what was not read is no more."""
        self.gone = self._given_up = True
        remaining = self.time_remaining()
        self.expired = self.expired or (remaining is not None and remaining <= EXPIRING_SECONDS)
        self.incoming.error = Cancelled("the client gave up")
        # A handler that is cancelled before its first step never runs: nothing that ends with it can be left to it.
        self._stop_timer()
        self.heard()
        if self.task is None:
            self._over()
        else:
            self.task.cancel()

    def end(self, code: int, text: str) -> None:
        """Send the status, unless there is nobody to send it to."""
        if not self.gone:
            if self._headers_sent:
                block = trailers(code, text, self._trailing)
            else:
                block = only_trailers(code, text, self._trailing)
            self._link.put(header_frames(self.number, block, end=True))
        self._over()

    def abandoned(self) -> None:
        """The handler's task is done and has not ended the call: it was cancelled too early, or its end went wrong."""
        self._trailing = ()
        self.end(*self.interruption())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self) -> None:
        if self.over:
            return
        self.over = True
        self._stop_timer()
        if self.incoming.error is not None:
            # It may have been raised through this call's own frames, which it would keep, and with them the call.
            self.incoming.error.__traceback__ = None
        if not self.gone:
            self.gone = True
            if not self.incoming.ended:
                # The client need not go on talking.
                self._link.put(reset(self.number, NO_ERROR))
        self._link.forget(self)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._link.loop.call_soon(callback, self)
