"""One client's connection: HTTP/2 (RFC 9113) as far as gRPC uses it, with a bound on everything a client can ask for.

A call begins with its headers; the handler of one that sends a single message begins when that message is there. What
is sent is collected and written once a turn of the event loop.

What a hostile client meets: its calls, and the handlers that still clean up after calls it reset, have a number;
headers are bounded by bytes, compressed or not, and by frames; answers to its pings, settings and faults wait for it
only up to a number, and all that waits for it up to a number of bytes; what it sends and no handler reads is not let in
beyond a number of bytes; a frame that concerns every call costs no more than any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from moored.api import http2 as frames
from moored.api.http2 import Broken
from moored.plugins.server.grpc.call import Call
from moored.plugins.server.grpc.headers import MAX_BLOCK, Blocks, only_trailers

if TYPE_CHECKING:
    from moored.plugins.server.grpc.calls import Calls

MAX_STREAMS: Final = 65536
"""Calls at once. High, because an engine holds one waiting call for each of its containers."""
STREAM_WINDOW: Final = 1 << 20
CONNECTION_WINDOW: Final = 16 << 20
MAX_UNREAD: Final = 64 << 20
"""Bytes of whole messages that wait for their handlers; above it the connection's window is not filled again."""
MAX_HEADER_FRAMES: Final = 32
MAX_REPLIES: Final = 4096
"""Answers to frames that ask for one, while the client does not read."""
WRITE_BUFFER: Final = 1 << 20
MAX_WRITE_BUFFER: Final = 16 << 20
"""Bytes of answers and ends of calls that wait for a client which does not read; messages wait elsewhere."""
MAX_WHY: Final = 200
"""Characters of the reason that a broken connection is given."""
PREFACE_SECONDS: Final = 20.0
CLOSE_SECONDS: Final = 5.0
"""What the client has to take what is left after the end of the connection."""

_HEAD = frames.HEAD.unpack_from


class Connection(asyncio.Protocol):
    """The server's side of one connection; of one event loop.

    opened, closed   called with the connection when it has come, and when it is no more
    """

    def __init__(
        self, calls: Calls, opened: Callable[[Connection], None], closed: Callable[[Connection], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.window = frames.FIRST_WINDOW
        self.peer = ""
        self.common_names: list[str] = []
        self._calls = calls
        self._opened, self._closed = opened, closed
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._greeted = False
        self._configured = False
        self._blocks = Blocks()
        self._pending: tuple[int, int, bytearray] | None = None
        self._pending_frames = 0
        self._streams: dict[int, Call] = {}
        self._handlers = 0
        self._last = 0
        self._stream_window = frames.FIRST_WINDOW
        self._checking = False
        self._frame_size = frames.MAX_FRAME
        self._in_window = CONNECTION_WINDOW
        self._in_owed = 0
        self._unread = 0
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._flushing = False
        self._paused = False
        self._replies = 0
        self._waiting: dict[Call, asyncio.Future[None]] = {}
        self._leaving = False
        self._closing = False
        self._handshake: asyncio.TimerHandle | None = None
        self._last_call: asyncio.TimerHandle | None = None

    # --- the transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._opened(self)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            if tls.selected_alpn_protocol() != "h2":
                self.abort()
                return
            subject = (tls.getpeercert() or {}).get("subject", ())
            self.common_names = [value for part in subject for name, value in part if name == "commonName"]
        self.peer = _peer(transport.get_extra_info("peername"))
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._handshake = self.loop.call_later(PREFACE_SECONDS, self.abort)
        announced = {
            frames.MAX_STREAMS: MAX_STREAMS,
            frames.INITIAL_WINDOW: STREAM_WINDOW,
            frames.MAX_HEADER_LIST: MAX_BLOCK,
        }
        self.put(frames.settings(announced) + frames.window_update(0, CONNECTION_WINDOW - frames.FIRST_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol: every handler is cancelled."""
        for timer in (self._handshake, self._last_call):
            if timer is not None:
                timer.cancel()
        self._transport = None
        self._out.clear()
        self._lose_all()
        self._closed(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = True
        self._replies = 0

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._closing:
            # TLS still hands on what it had read.
            return
        if self._rest:
            data = self._rest + data
        try:
            end = len(data)
            at = 0 if self._greeted else self._greet(data)
            while end - at >= frames.HEAD_BYTES:
                high, low, kind, flags, number = _HEAD(data, at)
                start = at + frames.HEAD_BYTES
                size = high << 16 | low
                if size > frames.MAX_FRAME:
                    _check(False, frames.FRAME_SIZE_ERROR, f"frame of {size} bytes")
                if end - start < size:
                    break
                at = start + size
                self._take(kind, flags, number & frames.MAX_WINDOW, data[start:at])
            self._rest = data[at:] if self._greeted else data
        except Broken as error:
            self._break(error.code, str(error))

    def _greet(self, data: bytes) -> int:
        if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
            raise Broken(frames.PROTOCOL_ERROR, "not HTTP/2")
        if len(data) >= len(frames.PREFACE) and self._handshake is not None:
            self._handshake.cancel()
            self._greeted = True
        return len(frames.PREFACE)

    # --- what is sent -------------------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview) -> int:
        """Send at the end of this turn of the event loop; the bytes that wait for it."""
        if self._transport is None or self._closing:
            return 0
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_in_turn)
        return self._out_bytes

    def _flush_in_turn(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._out and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._transport.write(data)
            if self._paused and self._transport.get_write_buffer_size() > MAX_WRITE_BUFFER and not self._closing:
                self._break(frames.ENHANCE_YOUR_CALM, "too much waits for the client to read")

    def _reply(self, data: bytes) -> None:
        if self._paused:
            self._replies += 1
            if self._replies > MAX_REPLIES:
                raise Broken(frames.ENHANCE_YOUR_CALM, "too many answers wait for the client to read")
        self.put(data)

    def has_room(self, call: Call, size: int) -> bool:
        """Whether a call may send so many bytes as one frame now."""
        return (
            size <= call.window + self._stream_window
            and size <= self.window
            and size <= self._frame_size
            and not self._paused
            and not call.gone
        )

    def room(self, call: Call, size: int) -> int:
        """How many of the bytes a call may send as one frame now."""
        if self._paused or call.gone:
            return 0
        return max(0, min(size, call.window + self._stream_window, self.window, self._frame_size))

    async def await_room(self, call: Call) -> None:
        """Wait until there may be room."""
        self._waiting[call] = waiter = self.loop.create_future()
        try:
            await waiter
        finally:
            if self._waiting.get(call) is waiter:
                del self._waiting[call]

    def _wake(self) -> None:
        # Whoever finds no room waits again; until then nobody is woken twice, however often the client asks for it.
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    # --- what is received ---------------------------------------------------------------------------------------------

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._pending is not None and (kind != frames.CONTINUATION or number != self._pending[0]):
            raise Broken(frames.PROTOCOL_ERROR, "headers were not finished")
        if not self._configured and kind != frames.SETTINGS:
            raise Broken(frames.PROTOCOL_ERROR, "settings must come first")
        if kind < len(_TAKERS):
            # Frames of other kinds are from a later time.
            _TAKERS[kind](self, flags, number, payload)

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._in_window -= size
        if self._in_window < 0:
            raise Broken(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._in_owed += size
        if number == 0 or number > self._last:
            raise Broken(frames.PROTOCOL_ERROR, f"data of stream {number}, which is idle")
        if flags & frames.PADDED:
            payload = frames.without_padding(payload, flags)
        call = self._streams.get(number)
        if call is None:
            # It may have been on its way when the call ended.
            _check(number % 2 == 1, frames.PROTOCOL_ERROR, f"data of stream {number}, which is idle")
            self._reset(number, frames.STREAM_CLOSED)
            self._fill_window()
            return
        if call.incoming.ended:
            self._fail(call, frames.STREAM_CLOSED)
        elif size > call.in_window:
            self._fail(call, frames.FLOW_CONTROL_ERROR)
        else:
            call.in_window -= size
            self._unread += len(payload)
            paid = call.incoming.feed(payload)
            if flags & frames.END_STREAM:
                call.incoming.end()
            self._returned(call, paid, size - len(payload))
            self._heard(call)
        self._fill_window()

    def _heard(self, call: Call) -> None:
        if call.task is not None:
            call.heard()
        elif call.incoming or call.incoming.ended or call.incoming.error is not None:
            self._start(call)

    def give_back(self, call: Call, size: int) -> None:
        """Let the client send so many bytes of a call again, which were read."""
        self._returned(call, size, 0)
        self._fill_window()

    def _returned(self, call: Call, read: int, padding: int) -> None:
        self._unread -= read
        call.returned += read + padding
        if call.returned >= STREAM_WINDOW // 2 and not call.incoming.ended and not call.gone:
            self.put(frames.window_update(call.number, call.returned))
            call.in_window += call.returned
            call.returned = 0

    def _fill_window(self) -> None:
        if self._in_owed >= CONNECTION_WINDOW // 2 and self._unread <= MAX_UNREAD:
            self.put(frames.window_update(0, self._in_owed))
            self._in_window += self._in_owed
            self._in_owed = 0

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        _check(number % 2 == 1, frames.PROTOCOL_ERROR, f"headers of stream {number}")
        if flags & (frames.PADDED | frames.PRIORITISED):
            payload = frames.without_padding(payload, flags)
            if flags & frames.PRIORITISED:
                _check(len(payload) >= 5, frames.FRAME_SIZE_ERROR, "headers without their priority")
                _check(_depends_on(payload) != number, frames.PROTOCOL_ERROR, f"stream {number} depends on itself")
                payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._take_block(number, flags, payload)
        else:
            self._pending = (number, flags, bytearray(payload))
            self._pending_frames = 1

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._pending is None:
            raise Broken(frames.PROTOCOL_ERROR, "continuation of nothing")
        _, first, block = self._pending
        block += payload
        self._pending_frames += 1
        if len(block) > MAX_BLOCK or self._pending_frames > MAX_HEADER_FRAMES:
            raise Broken(frames.ENHANCE_YOUR_CALM, f"headers of more than {MAX_BLOCK} bytes")
        if flags & frames.END_HEADERS:
            self._pending = None
            self._take_block(number, first, bytes(block))

    def _take_block(self, number: int, flags: int, block: bytes) -> None:
        request = self._blocks.read(block)
        if number <= self._last:
            self._take_trailers(number, flags)
            return
        self._last = number
        if self._leaving or len(self._streams) >= MAX_STREAMS or self._handlers >= MAX_STREAMS:
            self._reset(number, frames.REFUSED_STREAM)
            return
        if request is None:
            self._reset(number, frames.PROTOCOL_ERROR)
            return
        if (refusal := request.refusal) is not None:
            block = only_trailers(refusal.code, refusal.text, http=refusal.http)
            self._reply(frames.header_frames(number, block, end=True))
            if not flags & frames.END_STREAM:
                self.put(frames.reset(number, frames.NO_ERROR))
            return
        method = self._calls.find(request.path, request.metadata)
        call = Call(
            self,
            self._calls,
            number,
            request=request,
            method=method,
            in_window=STREAM_WINDOW,
        )
        self._streams[number] = call
        if flags & frames.END_STREAM:
            call.incoming.end()
        if method.client_streams or call.incoming.ended:
            self._start(call)

    def _take_trailers(self, number: int, flags: int) -> None:
        call = self._streams.get(number)
        if call is None:
            raise Broken(frames.STREAM_CLOSED, f"headers of stream {number}, which is closed")
        if call.incoming.ended:
            self._fail(call, frames.STREAM_CLOSED)
        elif not flags & frames.END_STREAM:
            self._fail(call, frames.PROTOCOL_ERROR)
        else:
            call.incoming.end()
            self._heard(call)

    def _take_window(self, _flags: int, number: int, payload: bytes) -> None:
        _check(len(payload) == 4, frames.FRAME_SIZE_ERROR, f"window update of {len(payload)} bytes")
        more = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if number == 0:
            _check(more > 0, frames.PROTOCOL_ERROR, "window update of nothing")
            self.window += more
            _check(self.window <= frames.MAX_WINDOW, frames.FLOW_CONTROL_ERROR, "the window is too large")
            if self._waiting:
                self._wake()
            return
        _check(number <= self._last, frames.PROTOCOL_ERROR, f"window of stream {number}, which is idle")
        call = self._streams.get(number)
        if call is None:
            return
        call.window += more
        if not more or call.window + self._stream_window > frames.MAX_WINDOW:
            self._fail(call, frames.FLOW_CONTROL_ERROR if more else frames.PROTOCOL_ERROR)
        elif (waiter := self._waiting.get(call)) is not None and not waiter.done():
            waiter.set_result(None)

    def _take_priority(self, _flags: int, number: int, payload: bytes) -> None:
        _check(number != 0, frames.PROTOCOL_ERROR, "priority of no stream")
        # The faults of a stream, which may be idle, and then could not be reset.
        _check(len(payload) == 5, frames.FRAME_SIZE_ERROR, f"priority of {len(payload)} bytes")
        _check(_depends_on(payload) != number, frames.PROTOCOL_ERROR, f"stream {number} depends on itself")

    def _take_push(self, _flags: int, _number: int, _payload: bytes) -> None:
        raise Broken(frames.PROTOCOL_ERROR, "clients do not push")

    def _take_ping(self, flags: int, number: int, payload: bytes) -> None:
        _check(number == 0, frames.PROTOCOL_ERROR, "ping of a stream")
        _check(len(payload) == 8, frames.FRAME_SIZE_ERROR, f"ping of {len(payload)} bytes")
        if not flags & frames.ACK:
            self._reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _take_goaway(self, _flags: int, number: int, _payload: bytes) -> None:
        _check(number == 0, frames.PROTOCOL_ERROR, "goaway of a stream")

    def _take_reset(self, _flags: int, number: int, payload: bytes) -> None:
        _check(len(payload) == 4, frames.FRAME_SIZE_ERROR, f"reset of {len(payload)} bytes")
        _check(0 < number <= self._last, frames.PROTOCOL_ERROR, f"reset of stream {number}, which is idle")
        call = self._streams.get(number)
        if call is not None:
            self._lose(call)

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        _check(number == 0, frames.PROTOCOL_ERROR, "settings of a stream")
        if flags & frames.ACK:
            _check(not payload, frames.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            return
        found = frames.read_settings(payload)
        self._configured = True
        self._frame_size = min(found.get(frames.MAX_FRAME_SIZE, self._frame_size), STREAM_WINDOW)
        if (window := found.get(frames.INITIAL_WINDOW)) is not None:
            self._stream_window = window
            self._wake()
            if self._streams and not self._checking:
                # Once for however many frames come together: there may be many streams.
                self._checking = True
                self.loop.call_soon(self._check_windows)
        self._reply(frames.SETTINGS_ACK)

    def _check_windows(self) -> None:
        self._checking = False
        most = frames.MAX_WINDOW - self._stream_window
        if not self._closing and any(call.window > most for call in self._streams.values()):
            self._break(frames.FLOW_CONTROL_ERROR, "a window is too large")

    # --- calls --------------------------------------------------------------------------------------------------------

    def _start(self, call: Call) -> None:
        self._handlers += 1
        call.task = task = self.loop.create_task(self._calls.serve(call))
        task.add_done_callback(partial(self._handled, call))

    def _handled(self, call: Call, _task: asyncio.Task[None]) -> None:
        self._handlers -= 1
        if not call.over:
            call.abandoned()
        # A task that was cancelled before its first step holds its frame, and that the call.
        call.task = None

    def forget(self, call: Call) -> None:
        """The call is over, or its client gave it up."""
        if self._streams.pop(call.number, None) is not None:
            self._unread -= call.incoming.drop()
            # Nothing else may come that would: a client without any window left cannot send.
            self._fill_window()
        waiter = self._waiting.get(call)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, call: Call, code: int) -> None:
        """End a call whose client breaks the rules of its stream."""
        self._reset(call.number, code)
        self._lose(call)

    def _reset(self, number: int, code: int) -> None:
        self._reply(frames.reset(number, code))

    # --- the end ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Take no further calls, and say so."""
        if not self._leaving:
            self._leaving = True
            self.put(frames.goaway(self._last, frames.NO_ERROR, "the daemon stops"))
            self.flush()

    def cut(self) -> None:
        """Cancel the calls that are under way."""
        for call in list(self._streams.values()):
            call.cut = True
            call.interrupt()

    def close(self) -> None:
        """Close as soon as the client has taken what was sent, and soon in any case."""
        if self._transport is not None and not self._closing:
            self._closing = True
            self.flush()
            self._transport.close()
            self._last_call = self.loop.call_later(CLOSE_SECONDS, self.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _break(self, code: int, why: str) -> None:
        self._leaving = True
        self._rest = b""
        self._lose_all()
        self.put(frames.goaway(self._last, code, why[:MAX_WHY]))
        self.close()

    def _lose_all(self) -> None:
        for call in list(self._streams.values()):
            self._lose(call)

    def _lose(self, call: Call) -> None:
        self.forget(call)
        call.lost()


_TAKERS: Final = (
    Connection._take_data,
    Connection._take_headers,
    Connection._take_priority,
    Connection._take_reset,
    Connection._take_settings,
    Connection._take_push,
    Connection._take_ping,
    Connection._take_goaway,
    Connection._take_window,
    Connection._take_continuation,
)
"""By kind of frame."""


def _check(holds: bool, code: int, why: str) -> None:
    if not holds:
        raise Broken(code, why)


def _depends_on(priority: bytes) -> int:
    return int.from_bytes(priority[:4], "big") & frames.MAX_WINDOW


def _peer(name: Any) -> str:
    if not isinstance(name, tuple):
        return "unix:"
    host, port = name[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
