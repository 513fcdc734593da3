"""One connection to a daemon at a unix socket; whatever fails arrives as an error of the closed set.

    Connection --bound to namespace and lease--> Calls --one RPC each--> daemon

Source: contracts/semantics.md 1.1, 1.2.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, TypeVar, cast
from urllib.parse import quote

import grpc
import grpc.aio

from moored.api.errors import from_status
from moored.kernel.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    PermissionDenied,
    Unavailable,
)

DEFAULT_ADDRESS: Final = "/run/moored/moored.sock"
ADDRESS_VARIABLES: Final = ("MOORED_ADDRESS", "CONTAINERD_ADDRESS")
DEFAULT_NAMESPACE: Final = "default"
NAMESPACE_VARIABLE: Final = "CONTAINERD_NAMESPACE"
DEFAULT_TIMEOUT: Final = 60.0
MAX_MESSAGE: Final = 16 << 20
"""Bytes; the same limit that daemons of this API have."""
MAX_PATH: Final = 107
"""Bytes; sun_path of unix(7) without its end."""

Q = TypeVar("Q")
R = TypeVar("R")

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.default_authority", "localhost"),  # or the path would become one, which Go servers refuse
    ("grpc.use_local_subchannel_pool", 1),
)


class ConnectionLost(Unavailable):
    """Nobody can be reached, or the connection broke; what the call would have done may be done or not."""


def socket_path(address: str) -> str:
    """Give the absolute path that an address (`/PATH`, `unix:///PATH`) names. Raises InvalidArgument."""
    scheme, separator, rest = address.partition("://")
    path = rest if separator else address.removeprefix("unix:")
    if (separator and scheme != "unix") or not path:
        raise InvalidArgument(f"address {address!r} must be the path of a unix socket, or unix:// and a path")
    path = os.path.abspath(path)  # noqa: PTH100 - a Path keeps the dots of "a/../b"
    if len(os.fsencode(path)) > MAX_PATH:
        raise InvalidArgument(
            f"address {path!r} is longer than the {MAX_PATH} bytes that a unix socket's path may have"
        )
    return path


def default_address(environment: Mapping[str, str] = os.environ) -> str:
    """Give the address that the environment names, else moored's own."""
    return next((found for name in ADDRESS_VARIABLES if (found := environment.get(name))), DEFAULT_ADDRESS)


def default_namespace(environment: Mapping[str, str] = os.environ) -> str:
    """Give the namespace that the environment names, else `default`."""
    return environment.get(NAMESPACE_VARIABLE) or DEFAULT_NAMESPACE


class Connection:
    """A gRPC channel, dialled by the first call, and again by later ones when it broke.

    timeout       seconds that a call which should be quick may take
    fifo_folder   where streams of processes are made
    """

    def __init__(
        self, address: str, timeout: float = DEFAULT_TIMEOUT, fifo_folder: Path = Path("/run/moored/fifo")
    ) -> None:
        self.address = socket_path(address)
        self.timeout = timeout
        self.fifo_folder = fifo_folder
        self._channel: grpc.aio.Channel | None = None

    def open(self) -> None:
        """Make the channel for the running event loop."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{quote(self.address)}", options=_OPTIONS)

    async def close(self) -> None:
        """Close it; calls under way are cancelled."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises FailedPrecondition before `open` and after `close`."""
        if self._channel is None:
            raise FailedPrecondition("client is not open, wanted a call inside of its 'async with' block")
        return self._channel

    @property
    def patient(self) -> bool:
        """Whether a call should wait for the connection: it failed before, and now somebody is there."""
        failed = self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return failed and _unreachable(self.address) is None

    @contextmanager
    def errors(self, seconds: float | None = None) -> Generator[None]:
        """Raise what the daemon, or the way to it, answers as an error of the closed set.

        ConnectionLost where nobody can be reached, PermissionDenied for a socket that is not ours to use,
        DeadlineExceeded once the seconds are over.
        """
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._told(error, seconds) from error

    def _told(self, error: grpc.aio.AioRpcError, seconds: float | None) -> MooredError:
        code, details = error.code(), error.details() or ""
        number: int = code.value[0]
        found = from_status(number, details)
        # A daemon's own text ends with the class; gRPC's do not.
        if isinstance(found, Unavailable) and found.bare:
            return _unreachable(self.address) or ConnectionLost(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and seconds is not None:
            return DeadlineExceeded(f"the daemon at {self.address} gave no answer within {seconds:g}s")
        return found


@dataclass(frozen=True, slots=True)
class Calls:
    """A connection with a namespace and a lease (empty for none) that go with each call."""

    connection: Connection
    namespace: str
    lease: str = ""

    def in_namespace(self, namespace: str) -> Calls:
        """Give the same for another namespace, without a lease, since leases are a namespace's own."""
        return Calls(self.connection, namespace)

    def with_lease(self, lease: str) -> Calls:
        """Give the same under another lease."""
        return replace(self, lease=lease)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, for stubs."""
        return self.connection.channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of a call."""
        headers = (("containerd-namespace", self.namespace), ("containerd-lease", self.lease))
        return tuple((name, value) for name, value in headers if value)

    async def unary(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, *, slow: bool = False) -> R:
        """Make a call; one that is slow has no deadline. Raises as `Connection.errors`, and what the daemon says."""
        seconds = None if slow else self.connection.timeout
        with self.connection.errors(seconds):
            patient = self.connection.patient
            answer: R = await method(request, metadata=self.metadata, timeout=seconds, wait_for_ready=patient)
        return answer

    async def server_stream(self, method: grpc.aio.UnaryStreamMultiCallable[Q, R], request: Q) -> AsyncGenerator[R]:
        """Make a call with many answers; closing the generator cancels it. Raises as `unary`, with no deadline."""
        call = method(request, metadata=self.metadata, wait_for_ready=self.connection.patient)
        try:
            with self.connection.errors():
                async for answer in call:
                    yield answer
        finally:
            call.cancel()

    def bidi_stream(self, method: grpc.aio.StreamStreamMultiCallable[Q, R]) -> Stream[Q, R]:
        """Begin a call in which both sides send any number of messages."""
        return Stream(method(metadata=self.metadata, wait_for_ready=self.connection.patient), self.connection)


class Stream(Generic[Q, R]):
    """A call in which both sides send. Concurrency: one send and one receive at a time. Errors as `Calls.unary`."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Q, R], connection: Connection) -> None:
        self._call = call
        self._connection = connection

    async def send(self, message: Q) -> None:
        """Send a message; without effect when the other side has ended the call: `receive` tells why."""
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.write(message)

    async def receive(self) -> R | None:
        """Give the next message, None when the other side has no more."""
        with self._connection.errors():
            found = await self._call.read()
        return None if found is grpc.aio.EOF else cast(R, found)

    async def ask(self, message: Q) -> R:
        """Send a message and give the answer to it. Raises Unavailable if the other side ends without one."""
        await self.send(message)
        answer = await self.receive()
        if answer is None:
            raise Unavailable("the daemon ended the call without an answer")
        return answer

    async def done(self) -> None:
        """Say that no more is coming."""
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.done_writing()

    async def end(self) -> None:
        """Say that no more is coming, and wait until the other side has ended too; its error is of no interest now."""
        await self.done()
        with suppress(asyncio.InvalidStateError, MooredError):
            while await self.receive() is not None:
                pass

    def cancel(self) -> None:
        """End it at once."""
        self._call.cancel()


def _unreachable(address: str) -> MooredError | None:
    """Why nobody can connect to a socket, asked of the kernel since gRPC's texts differ by version; None if one can."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(address)
        except FileNotFoundError:
            return ConnectionLost(f"there is no socket {address}, is the daemon running?")
        except PermissionError:
            return PermissionDenied(f"permission denied on socket {address}")
        except ConnectionRefusedError:
            return ConnectionLost(f"nobody listens on socket {address}, is the daemon running?")
        except BlockingIOError:
            return ConnectionLost(f"the daemon at {address} accepts no connections, its queue is full")
        except OSError as error:
            return InvalidArgument(f"cannot connect to {address!r}: {error.strerror or error}")
    return None
