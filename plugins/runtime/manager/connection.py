"""The connection to one shim, over ttrpc or gRPC, with messages in their wire form."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from moored.kernel.errors import DeadlineExceeded, InvalidArgument, MooredError, Unavailable
from moored.kernel.ports.shims import Endpoint

NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"
GRPC_NAMESPACE_KEY: Final = "containerd-namespace"
_MAX_GREETING: Final = 256
_NOBODY: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ENODEV})


class Connection(Protocol):
    """Calls to a shim; errors as `kernel.ports.shims.Shim.call` has them, but for the text of DeadlineExceeded."""

    @property
    def closed(self) -> bool:
        """Whether calls can only fail."""

    async def call(self, service: str, method: str, request: bytes, *, namespace: str, seconds: float | None) -> bytes:
        """Call a method; None waits for ever."""

    async def wait_closed(self) -> None:
        """Wait until the connection is closed by either side."""

    async def close(self) -> None:
        """Close it; calls under way fail with Unavailable."""


def nobody_listens(error: MooredError) -> bool:
    """Whether a failed connect tells that there is no shim any more; any other failure may be one of ours."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NOBODY


async def connect(endpoint: Endpoint, *, seconds: float) -> Connection:
    """Connect within `seconds`. Raises Unavailable, DeadlineExceeded, InvalidArgument for a strange address."""
    if endpoint.protocol == "grpc":
        return await _grpc(endpoint.address.removeprefix("unix://"), seconds)
    from moored.api.ttrpc.client import connect as connect_ttrpc

    return _Ttrpc(await connect_ttrpc(await _dial(endpoint.address, seconds), timeout=seconds))


async def _dial(address: str, seconds: float) -> socket.socket:
    """Give a socket that is connected to an address of any form."""
    try:
        async with asyncio.timeout(seconds):
            return await _reached(address)
    except TimeoutError:
        raise DeadlineExceeded(f"shim at {address!r} was not reached within {seconds:g} seconds") from None
    except OSError as error:
        raise Unavailable(f"shim at {address!r}: {error.strerror}") from error


async def _reached(address: str) -> socket.socket:
    scheme, found, rest = address.partition("://")
    if not found:
        return _on_host(f"\0{address}")
    if scheme == "unix" and rest.startswith("/"):
        return _on_host(rest)
    place, _, port = rest.rpartition(":")
    if scheme not in {"vsock", "hvsock"} or not re.fullmatch("[0-9]{1,10}", port) or not place:
        raise InvalidArgument(
            f"shim address is {address!r}, wanted unix://PATH, vsock://CID:PORT or hvsock://PATH:PORT"
        )
    if scheme == "vsock":
        return await _on_machine(_number(place), int(port))
    return await _through_host(place, int(port))


def _on_host(path: str) -> socket.socket:
    """Connect to a unix socket, which never waits: a full queue of a hung shim is BlockingIOError.

    asyncio would take that for a connection under way, and then for one that stands.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text):
        raise InvalidArgument(f"vsock context id is {text!r}, wanted a number")
    return int(text)


async def _on_machine(machine: int, port: int) -> socket.socket:
    """Connect to a port of a virtual machine."""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (machine, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _through_host(path: str, port: int) -> socket.socket:
    """Connect to a port in a virtual machine through the socket that its monitor offers on the host."""
    loop = asyncio.get_running_loop()
    sock = _on_host(path)
    try:
        await loop.sock_sendall(sock, f"CONNECT {port}\n".encode())
        greeting = b""
        # byte by byte: what follows the line is the connection's
        while not greeting.endswith(b"\n") and len(greeting) < _MAX_GREETING:
            data = await loop.sock_recv(sock, 1)
            if not data:
                break
            greeting += data
    except BaseException:
        sock.close()
        raise
    if not greeting.startswith(b"OK"):
        sock.close()
        raise Unavailable(f"virtual machine at {path!r} answered {greeting!r}, wanted 'OK'")
    return sock


class _Raw:
    """Stands for a protobuf message, to carry bytes that others have made or will read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self.data

    @classmethod
    def FromString(cls, data: bytes) -> _Raw:  # noqa: N802 - protobuf's name
        return cls(data)


class _Ttrpc:
    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def closed(self) -> bool:
        return bool(self._client.closed)

    async def call(self, service: str, method: str, request: bytes, *, namespace: str, seconds: float | None) -> bytes:
        answer = await self._client.unary(
            service, method, _Raw(request), _Raw, timeout=seconds, metadata={NAMESPACE_KEY: (namespace,)}
        )
        return cast(_Raw, answer).data

    async def wait_closed(self) -> None:
        await self._client.wait_closed()

    async def close(self) -> None:
        await self._client.close()


async def _grpc(path: str, seconds: float) -> Connection:
    # gRPC would go on trying a socket that nobody serves
    (await _dial(f"unix://{path}", seconds)).close()
    import grpc

    channel = grpc.aio.insecure_channel(f"unix:{path}")
    connection = _Grpc(channel)
    try:
        async with asyncio.timeout(seconds):
            await channel.channel_ready()
    except TimeoutError:
        await channel.close()
        raise DeadlineExceeded(f"shim at {path!r} was not ready within {seconds:g} seconds") from None
    return connection


class _Grpc:
    def __init__(self, channel: Any) -> None:
        self._channel = channel

    @property
    def closed(self) -> bool:
        import grpc

        state = self._channel.get_state()
        return state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}

    async def call(self, service: str, method: str, request: bytes, *, namespace: str, seconds: float | None) -> bytes:
        import grpc

        from moored.api.errors import from_status

        call = self._channel.unary_unary(f"/{service}/{method}")
        try:
            answer: bytes = await call(request, timeout=seconds, metadata=((GRPC_NAMESPACE_KEY, namespace),))
        except grpc.aio.AioRpcError as error:
            raise from_status(error.code().value[0], error.details() or "") from None
        return answer

    async def wait_closed(self) -> None:
        import grpc

        states = grpc.ChannelConnectivity
        state = self._channel.get_state()
        while state not in {states.IDLE, states.TRANSIENT_FAILURE, states.SHUTDOWN}:
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state()

    async def close(self) -> None:
        with suppress(Exception):
            await self._channel.close()
