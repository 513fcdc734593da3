"""A gRPC server for as long as its plugin runs: on a unix socket, or on TCP with or without TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.plugin import InitContext
from moored.kernel.ports.metrics import METRICS
from moored.kernel.ports.services import GRPC
from moored.plugins.server.grpc.calls import Calls
from moored.plugins.server.grpc.connection import Connection
from moored.plugins.server.unixsocket import claim

GRACE = 1.0
"""Seconds that running calls get to end by themselves when the listener stops; subscriptions never do."""
CUT = 1.0
"""Seconds that handlers get to react to being cancelled after that."""
BACKLOG = 4096
"""Clients that may wait to be accepted, as Go's listeners let them."""
ACCEPTED = 64
"""How many are accepted before others get their turn."""
FULL_SECONDS = 0.5
"""Until clients are accepted again after the daemon had no room for one more."""


@dataclass(frozen=True, slots=True)
class GrpcListener:
    """The Listener of a gRPC server."""

    address: str


def new_calls(ctx: InitContext[Any], *, max_receive: int, max_send: int, common_name: str = "") -> Calls:
    """All started services, ready to be served, under all started observers; one that cannot be is left out."""
    calls = Calls(
        observers=list(ctx.all(METRICS).values()),
        hooks=ctx.hooks,
        log=ctx.log,
        max_receive=max_receive,
        max_send=max_send,
        common_name=common_name,
    )
    for id_, service in sorted(ctx.all(GRPC).items()):
        owner = f"{GRPC.uri}.{id_}"
        try:
            service.register(calls.registrar(owner))
        except Exception:
            # One service must not take the listener, and with it all others, away.
            ctx.log.exception("service cannot be registered", service=owner)
    return calls


@asynccontextmanager
async def on_unix(calls: Calls, address: str, *, uid: int, gid: int) -> AsyncGenerator[GrpcListener]:
    """Serve on a unix socket. Raises what `unixsocket.claim` raises."""
    with claim(address, uid, gid) as place:
        async with _served(calls, [place.bound()], None):
            place.publish()
            yield GrpcListener(address)


@asynccontextmanager
async def on_tcp(calls: Calls, address: str, *, tls: ssl.SSLContext | None) -> AsyncGenerator[GrpcListener]:
    """Serve on HOST:PORT; port 0 takes a free one. Raises InvalidArgument, FailedPrecondition.

    Without tls only loopback addresses are possible: who may call this API is root on its host.
    """
    host, port = split_address(address)
    if tls is None and not is_loopback(host):
        raise FailedPrecondition(f"address {address!r} is open to other hosts and needs tls_cert and tls_key")
    shown = f"[{host}]" if ":" in host else host
    try:
        sockets = await asyncio.to_thread(_bound, host, port)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise FailedPrecondition(f"cannot listen on {address!r}: {why}") from error
    real = sockets[0].getsockname()[1]
    async with _served(calls, sockets, tls):
        yield GrpcListener(f"{shown}:{real}")


def split_address(address: str) -> tuple[str, int]:
    """The host (without brackets, "" for every one) and port of HOST:PORT. Raises InvalidArgument."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not bracketed):
        raise InvalidArgument(f"address {address!r} must look like '127.0.0.1:7700' or '[::1]:7700'")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this host reaches the address; a name other than localhost counts as reachable from elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, all of them on one port. Raises OSError."""
    if not host:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return [socket.create_server(("", port), family=family, dualstack_ipv6=both)]
    found: list[socket.socket] = []
    try:
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            wanted = (place[0], port or (found[0].getsockname()[1] if found else 0))
            found.append(socket.create_server(wanted, family=family))
    except BaseException:
        for one in found:
            one.close()
        raise
    return found


@asynccontextmanager
async def _served(calls: Calls, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> AsyncGenerator[None]:
    """Accept inside; in the end calls get GRACE, then are cancelled and their handlers get CUT to notice."""
    clients = Clients(calls, tls)
    try:
        for one in sockets:
            clients.accept(one)
        yield
    finally:
        await clients.end()


class Clients:
    """Accepts connections, and ends them."""

    def __init__(self, calls: Calls, tls: ssl.SSLContext | None) -> None:
        self._calls = calls
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._listening: set[socket.socket] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._open: dict[Connection, asyncio.Future[None]] = {}

    def accept(self, listening: socket.socket) -> None:
        """Take clients of a socket from here on; it is closed at the end."""
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._listening.add(listening)
        self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED):
            try:
                found, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptors, or no memory: those who wait go on waiting, and are not asked about all the time.
                self._loop.remove_reader(listening)
                self._loop.call_later(FULL_SECONDS, self._accept_again, listening)
                return
            found.setblocking(False)
            task = self._loop.create_task(self._connect(found))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    async def _connect(self, found: socket.socket) -> None:
        if found.family != socket.AF_UNIX:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A client that does not get through the handshake of TLS is its own business.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(self._connection, found, ssl=self._tls)

    def _connection(self) -> Connection:
        return Connection(self._calls, self._opened, self._closed)

    def _opened(self, connection: Connection) -> None:
        self._open[connection] = self._loop.create_future()

    def _closed(self, connection: Connection) -> None:
        if (closed := self._open.pop(connection, None)) is not None and not closed.done():
            closed.set_result(None)

    async def end(self) -> None:
        """Accept nobody more, let the calls end, cancel those that do not, and close."""
        for listening in self._listening:
            self._loop.remove_reader(listening)
            listening.close()
        self._listening.clear()
        # What was accepted is begun to be connected: only then does cancelling it close it.
        await asyncio.sleep(0)
        for task in tuple(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in tuple(self._open):
            connection.leave()
        await _wait(self._calls.running, GRACE)
        for connection in tuple(self._open):
            connection.cut()
        await _wait(self._calls.running, CUT)
        for connection in tuple(self._open):
            connection.close()
        await _wait(self._open.values(), CUT)
        for connection in tuple(self._open):
            connection.abort()
        await _wait(self._open.values(), CUT)


async def _wait(for_: Collection[asyncio.Future[Any]], seconds: float) -> None:
    if for_:
        await asyncio.wait(tuple(for_), timeout=seconds)
