"""One ttrpc connection over an asyncio transport: frames out with a bound and a deadline, frames in one at a time.

Both sides stand on this. What is held of a connection is bounded: one frame under way and one chunk of bytes read, the
queues of its streams, and about `write_buffer` plus one frame to be written.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from moored.api.ttrpc.frame import CLOSED, Decoder, Event, Frame, encode
from moored.kernel.errors import Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection; seconds and bytes.

    queue: messages of one stream that came and nobody has read. When one more arrives, nothing of the connection is
        read until there is room, and after stall_timeout that stream alone is given up and reading goes on.
    write_buffer: bytes waiting to be written above which writers wait; a peer that then takes too little for
        write_timeout is cut off. The same time is given to the last bytes of a connection that closes.
    max_streams: calls under way at once.
    """

    queue: int = 64
    stall_timeout: float = 5.0
    write_buffer: int = 1 << 20
    write_timeout: float = 30.0
    max_streams: int = 1024


class Link(asyncio.Protocol):
    """A connection's transport half.

    A subclass takes the frames in `on_event` and learns of the end in `on_closed`, which is called once, at the first
    of close, end of file and error. Bound to the loop that it was made in; no method may be called from another thread.
    """

    reads_follow_writes = False
    """Stop reading while the peer does not take what is written: for a side that writes because of what it reads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._held: Event | None = None  # the event that waits for room in its stream's queue
        self._stall: asyncio.TimerHandle | None = None
        self._cutoff: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self.closed = False

    # What a subclass says.

    def on_open(self) -> None:
        """The connection stands; may call abort."""

    def on_event(self, event: Event) -> bool:
        """Take one event; False if its stream's queue is full, and it is offered again after `release`."""
        raise NotImplementedError

    def on_stalled(self, event: Event) -> None:
        """The queue stayed full for stall_timeout: end that stream; the event is dropped."""
        raise NotImplementedError

    def on_closed(self, error: Exception | None) -> None:
        """Nothing more is read or written; error is the socket's, if it had one."""
        raise NotImplementedError

    def on_lost(self) -> None:
        """The socket is closed; always after on_closed."""

    # Writing.

    async def send(self, frame: Frame) -> None:
        """Write the frame, after waiting until the peer has taken enough of what came before.

        Errors: ResourceExhausted (longer than a frame may be; nothing is written), Unavailable (closed).
        Cancellation: the frame was not written.
        """
        data = encode(frame)
        await self.writable()
        self.write(data)

    async def writable(self) -> None:
        """Wait until `write` may be called; returns without suspending if so already.

        Errors: Unavailable (closed).
        """
        while not self._writable.is_set():
            await self._writable.wait()
        if self.closed:
            raise Unavailable(CLOSED, bare=True)

    def write(self, data: bytes) -> None:
        """Write a frame's bytes at once; the caller has waited for `writable` or is bounded otherwise."""
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    # Reading.

    def release(self, stream_id: int) -> None:
        """There is room in that stream's queue again, or the stream is over."""
        if self._held is not None and self._held.stream_id == stream_id:
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        while not self.closed and (self._writable.is_set() or not self.reads_follow_writes):
            event, self._held = self._held, None
            if event is None:
                event = next(self._decoder, None)
            self._unstall()
            if event is None:
                self._reading(on=True)
                return
            if not self.on_event(event):
                self._held = event
                self._stall = self._loop.call_later(self._limits.stall_timeout, self._stalled)
                break
        self._reading(on=False)

    def _reading(self, *, on: bool) -> None:
        if self._transport is None or self.closed:
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        self._stall = None
        event, self._held = self._held, None
        if event is not None and not self.closed:
            self.on_stalled(event)
            self._pump()

    # Ending.

    def close(self) -> None:
        """Write what waits, within write_timeout, and close; nothing more is read."""
        self._end(None)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._arm()

    def abort(self, error: Exception | None = None) -> None:
        """Close at once; what waits to be written is lost."""
        self._end(error)
        if self._transport is not None:
            self._transport.abort()

    @property
    def lost(self) -> bool:
        """Whether the socket is closed."""
        return self._lost.is_set()

    async def wait_lost(self) -> None:
        """Wait until the socket is closed."""
        await self._lost.wait()

    def _end(self, error: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._held = None
        self._unstall()
        self._disarm()
        self._writable.set()  # waiting writers wake and find it closed
        self.on_closed(error)

    def _arm(self) -> None:
        self._disarm()
        self._cutoff = self._loop.call_later(self._limits.write_timeout, self._cut_off)

    def _disarm(self) -> None:
        if self._cutoff is not None:
            self._cutoff.cancel()
            self._cutoff = None

    def _cut_off(self) -> None:
        seconds = self._limits.write_timeout
        self.abort(TimeoutError(f"the peer read too little for {seconds:g} seconds, wanted it to take what is written"))

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer)
        self.on_open()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._decoder.feed(data)
        self._pump()

    def eof_received(self) -> bool:
        """Part of asyncio.Protocol: a peer that sends no more has gone."""
        self.close()
        return False

    def pause_writing(self) -> None:
        """Part of asyncio.Protocol."""
        if not self.closed:
            self._writable.clear()
            self._arm()

    def resume_writing(self) -> None:
        """Part of asyncio.Protocol."""
        if not self.closed:
            self._disarm()
            self._writable.set()
            if self.reads_follow_writes:
                self._loop.call_soon(self._pump)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self._end(exc)
        self._disarm()
        self._lost.set()
        self.on_lost()
