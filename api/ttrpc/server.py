"""The ttrpc server: listens on stream sockets and answers calls with the handlers of a `Services` registry.

One connection serves many calls at once, each in a task of its own. A connection reads nothing more while its peer
does not take its answers, or while one stream has more than `Limits.queue` unread messages; so a peer holds up itself
at most. What one connection sends never touches another. Source: `contracts/ttrpc.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError

from moored.api.errors import to_status
from moored.api.ttrpc.call import Call, StatusOf, answer, status_frame
from moored.api.ttrpc.frame import (
    CLOSED,
    DATA,
    DEADLINE,
    NO_DATA,
    REMOTE_CLOSED,
    REQUEST,
    Event,
    Frame,
    Oversize,
    encode,
    oversize_text,
)
from moored.api.ttrpc.inbox import Inbox
from moored.api.ttrpc.link import Limits, Link
from moored.api.ttrpc.request_pb2 import Request
from moored.api.ttrpc.service import CallContext, Kind, Method, Peer, Services, methods_of, peer_of

__all__ = ["CallContext", "Kind", "Method", "Peer", "Server", "ServerLimits", "Services", "methods_of"]

log = logging.getLogger("moored.ttrpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(Limits):
    """Bounds of a server; seconds. A connection beyond max_connections is closed at once.

    A call beyond max_streams is answered with status 8. cancel_timeout is how long a closing server waits for handlers
    that it has cancelled; those that run on are logged and left.
    """

    max_connections: int = 4096
    cancel_timeout: float = 5.0


class Server:
    """Serves a registry on any number of listening sockets; an async context manager that closes hard on exit.

    require_same_user closes connections whose peer is no unix socket of our effective uid and gid, as containerd does.
    error_to_status turns what handlers raise into code and text. Bound to one event loop.
    """

    def __init__(
        self,
        services: Services,
        *,
        limits: ServerLimits | None = None,
        require_same_user: bool = True,
        error_to_status: StatusOf = to_status,
    ) -> None:
        self.services = services
        self.limits = limits or ServerLimits()
        self._status_of = error_to_status
        self._require_same_user = require_same_user
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[Path, int]] = []  # what was bound, with its inode
        self._links: set[_ServerLink] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """Connections that stand."""
        return len(self._links)

    async def listen(self, path: str, *, mode: int = 0o660) -> None:
        """Listen on a unix socket at path; one that starts with a zero byte is abstract and has no mode.

        A socket file left behind at path is replaced.
        Errors: OSError (path too long, no such folder, address in use).
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not path.startswith("\0"):
                self._paths.append((Path(path), _bind(sock, path, mode)))
            else:
                sock.bind(path)
            await self.serve(sock)
        except BaseException:
            sock.close()
            raise

    async def serve(self, sock: socket.socket) -> None:
        """Accept on a bound stream socket of any family; the server owns it from now on."""
        loop = asyncio.get_running_loop()
        make = self._make_link
        if sock.family == socket.AF_UNIX:
            listener: asyncio.Server = await loop.create_unix_server(make, sock=sock)
        else:
            listener = await loop.create_server(make, sock=sock)
        self._listeners.append(listener)

    async def stop(self, grace: float) -> None:
        """Stop listening, close idle connections, let calls end for grace seconds, then close hard.

        New calls on connections that still have others are answered with status 14.
        """
        self._stop_listening()
        for link in tuple(self._links):
            link.close_if_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace)
        await self.close()

    async def close(self) -> None:
        """Close listeners and connections at once and cancel all handlers; waits cancel_timeout for them."""
        self._stop_listening()
        links = tuple(self._links)
        tasks = [task for link in links for task in link.tasks]
        for link in links:
            link.abort()
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=self.limits.cancel_timeout)
            for task in running:
                log.error("ttrpc: handler %r does not end when cancelled", task.get_name())
        for link in links:
            await link.wait_lost()

    def _stop_listening(self) -> None:
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()
        self._paths.clear()

    def _make_link(self) -> _ServerLink:
        return _ServerLink(self, self._status_of)

    def admit(self, link: _ServerLink, sock: socket.socket) -> Peer | None:
        """Count a new connection and tell who it is.

        Errors: PermissionError if it may not stay, with the reason.
        """
        if self.stopping:
            raise PermissionError("the server is stopping")
        if len(self._links) >= self.limits.max_connections:
            raise PermissionError(f"there are {self.limits.max_connections} connections, which is the limit")
        peer = peer_of(sock)
        if self._require_same_user and (peer is None or (peer.uid, peer.gid) != (os.geteuid(), os.getegid())):
            raise PermissionError(f"peer is {peer}, wanted uid {os.geteuid()} and gid {os.getegid()}")
        self._links.add(link)
        self._empty.clear()
        return peer

    def forget(self, link: _ServerLink) -> None:
        """A connection is gone and its handlers have ended."""
        self._links.discard(link)
        if not self._links:
            self._empty.set()


class _ServerLink(Link):
    """One connection's calls."""

    reads_follow_writes = True

    def __init__(self, server: Server, status_of: StatusOf) -> None:
        super().__init__(server.limits)
        self._server = server
        self._status_of = status_of
        self._peer: Peer | None = None
        self._last_id = 0
        self._calls: dict[int, Call] = {}  # those whose answer is not complete
        self.tasks: set[asyncio.Task[None]] = set()  # those whose handler runs

    def on_open(self) -> None:
        assert self._transport is not None
        try:
            self._peer = self._server.admit(self, self._transport.get_extra_info("socket"))
        except (PermissionError, OSError) as error:
            log.warning("ttrpc: connection refused: %s", error)
            self.abort()

    def on_closed(self, error: Exception | None) -> None:
        if error is not None:
            level = logging.WARNING if isinstance(error, TimeoutError) else logging.DEBUG  # cut off, or gone by itself
            log.log(level, "ttrpc: connection of %s lost: %s", self._peer, error)
        self._calls.clear()
        for task in self.tasks:
            task.cancel()

    def on_lost(self) -> None:
        if not self.tasks:
            self._server.forget(self)

    def close_if_idle(self) -> None:
        if not self.tasks:
            self.close()

    def on_event(self, event: Event) -> bool:
        if isinstance(event, Oversize):
            self._refuse(event.stream_id, 8, oversize_text(event.length))
        elif not event.stream_id & 1:
            self._refuse(event.stream_id, 3, "StreamID must be odd for client initiated streams")
        elif event.kind == DATA:
            return self._on_data(event)
        elif event.kind == REQUEST:
            self._on_request(event)
        return True  # unknown types are for later versions of the protocol

    def on_stalled(self, event: Event) -> None:
        self._refuse(event.stream_id, 3, "data handling error: ttrpc: stream buffer full")

    def _on_data(self, frame: Frame) -> bool:
        call = self._calls.get(frame.stream_id)
        if call is None:
            self._refuse(frame.stream_id, 3, "StreamID is no longer active")
            return True
        inbox = call.inbox
        if not frame.flags & NO_DATA:
            if inbox.ended:
                self._refuse(frame.stream_id, 3, "data handling error: ttrpc: stream closed")
                return True
            if inbox.full:
                return False
            inbox.put(frame.data)
        if frame.flags & REMOTE_CLOSED:
            inbox.end()
            if frame.data:
                # The handler has all it needs and goes on, but the stream has had its answer.
                self._tell(frame.stream_id, 3, "data close message cannot include data")
        return True

    def _on_request(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if stream_id <= self._last_id:
            self._refuse(stream_id, 3, "StreamID cannot be re-used and must increment")
            return
        self._last_id = stream_id
        try:
            request = Request.FromString(frame.data)
        except DecodeError as error:
            self._refuse(stream_id, 3, f"unmarshal request error: {error}")
            return
        methods = self._server.services.get(request.service)
        method = None if methods is None else methods.get(request.method)
        if methods is None:
            self._refuse(stream_id, 12, f"service {request.service}")
        elif method is None:
            self._refuse(stream_id, 12, f"method {request.method}")
        elif self._server.stopping:
            self._refuse(stream_id, 14, CLOSED)
        elif len(self.tasks) >= self._limits.max_streams:
            self._refuse(stream_id, 8, f"connection has {self._limits.max_streams} calls under way, the most allowed")
        elif request.timeout_nano < 0:
            self._refuse(stream_id, 4, DEADLINE)
        else:
            self._start(frame, method, request)

    def _start(self, frame: Frame, method: Method, request: Request) -> None:
        stream_id = frame.stream_id
        inbox = Inbox(method.request_type, self._limits.queue, lambda: self.release(stream_id))
        if not method.kind.client_streams or request.payload:
            inbox.put(request.payload)
        if not method.kind.client_streams or frame.flags & REMOTE_CLOSED:
            inbox.end()
        call = Call(stream_id, method, self._context(request), inbox)
        task = self._loop.create_task(self._run(call), name=f"{request.service}/{request.method}")
        if call.context.deadline is not None:
            call.expire_at(self._loop, task)
        call.task = task
        self._calls[stream_id] = call
        self.tasks.add(task)
        task.add_done_callback(lambda task: self._ended(call, task))

    def _context(self, request: Request) -> CallContext:
        metadata: dict[str, list[str]] = {}
        for pair in request.metadata:
            metadata.setdefault(pair.key, []).append(pair.value)
        nano = request.timeout_nano
        return CallContext(
            service=request.service,
            method=request.method,
            metadata=metadata,
            deadline=self._loop.time() + nano / 1e9 if nano else None,
            peer=self._peer,
        )

    async def _run(self, call: Call) -> None:
        end = await answer(call, self.send, self._status_of)
        data = encode(end)
        await self.writable()
        if self._calls.pop(call.stream_id, None) is call:
            call.over = True
            self.write(data)
            self.release(call.stream_id)

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        call.stop_clock()
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.closed:
            log.error("ttrpc: %s could not be answered", task.get_name(), exc_info=error)
        if self._calls.get(call.stream_id) is call:
            self._tell(call.stream_id, 13, "the call ended without an answer")
        if self.lost:
            self.on_lost()
        elif self._server.stopping:
            self.close_if_idle()

    def _tell(self, stream_id: int, code: int, text: str) -> None:
        """Answer with a status, which ends the stream; a handler that runs for it is not disturbed."""
        call = self._calls.pop(stream_id, None)
        if call is not None:
            call.over = True
            self.release(stream_id)
        self.write(encode(status_frame(stream_id, code, text)))

    def _refuse(self, stream_id: int, code: int, text: str) -> None:
        """Answer with a status and cancel the handler, if one runs for the stream."""
        call = self._calls.get(stream_id)
        self._tell(stream_id, code, text)
        if call is not None and call.task is not None:
            call.task.cancel()


def _bind(sock: socket.socket, path: str, mode: int) -> int:
    """Bind at path, which may hold a dead socket, and give the inode of what was made."""
    place = Path(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(place.lstat().st_mode):
            place.unlink()
    sock.bind(path)
    place.chmod(mode)
    return place.lstat().st_ino
