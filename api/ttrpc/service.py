"""What a ttrpc server serves: methods by service and name, and what a handler is told of its call."""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from moored.api.ttrpc.frame import NAMESPACE_KEY
from moored.kernel.errors import AlreadyExists, InvalidArgument

_UCRED = struct.Struct("=iII")


class Kind(enum.Enum):
    """Which sides of a call send more than one message."""

    UNARY = "unary"
    CLIENT_STREAM = "client stream"
    SERVER_STREAM = "server stream"
    BIDI = "bidi"

    @property
    def client_streams(self) -> bool:
        """Whether the handler is given an async iterator of requests."""
        return self in {Kind.CLIENT_STREAM, Kind.BIDI}

    @property
    def server_streams(self) -> bool:
        """Whether the handler gives an async iterator of responses."""
        return self in {Kind.SERVER_STREAM, Kind.BIDI}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as the kernel knows it; effective ids at the time of connect, pid 0 if it has none here."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What a handler is told of its call besides the request.

    deadline is on the clock of `asyncio.get_running_loop().time()`, None if the client gave no time; the handler is
    cancelled then, and also when the client goes away. peer is None on sockets that are not unix sockets.
    """

    service: str
    method: str
    metadata: dict[str, list[str]] = field(default_factory=dict)
    deadline: float | None = None
    peer: Peer | None = None

    @property
    def namespace(self) -> str:
        """The first value of the namespace key; empty if the client sent none."""
        values = self.metadata.get(NAMESPACE_KEY)
        return values[0] if values else ""

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - asyncio.get_running_loop().time())


Handler = Callable[[Any, CallContext], Any]
"""`(request, context)`, where request is one message or an async iterator of them, by the method's kind.

Unary and client stream: a coroutine function giving the response. Server stream and bidi: an async generator function,
or a coroutine function giving an async iterator. Errors of moored.kernel.errors become the call's status; any other is
a fault, which is logged and answered with its text. Cancellation: at the deadline and when the client has gone.
"""


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc: its kind, the protobuf classes of its messages, its handler."""

    kind: Kind
    request_type: type[Message]
    response_type: type[Message]
    handler: Handler


class Services:
    """The registry that a server answers from. May grow while the server runs."""

    def __init__(self) -> None:
        self._services: dict[str, Mapping[str, Method]] = {}

    def register(self, service_name: str, methods: Mapping[str, Method]) -> None:
        """Serve the methods (bare rpc names) under the full proto name of their service.

        Errors: AlreadyExists if the service is registered.
        """
        if service_name in self._services:
            raise AlreadyExists(f"ttrpc service {service_name!r} is registered twice")
        self._services[service_name] = dict(methods)

    def add(self, descriptor: ServiceDescriptor, target: object) -> None:
        """Register all that target implements of the described service, under the service's own name.

        Errors: those of register and methods_of.
        """
        self.register(descriptor.full_name, methods_of(descriptor, target))

    def get(self, service_name: str) -> Mapping[str, Method] | None:
        """The methods of a service, None if it is not registered."""
        return self._services.get(service_name)

    def names(self) -> tuple[str, ...]:
        """The registered services, in order of registration."""
        return tuple(self._services)


def methods_of(descriptor: ServiceDescriptor, target: object) -> dict[str, Method]:
    """The methods of the described service that target has, by rpc name (`CloseIO`) or its snake case (`close_io`).

    A method that target lacks is left out, so that calling it is answered as unknown.
    Errors: InvalidArgument if target has none of them.
    """
    methods: dict[str, Method] = {}
    for rpc in descriptor.methods:
        handler = getattr(target, rpc.name, None) or getattr(target, snake_case(rpc.name), None)
        if handler is not None:
            methods[rpc.name] = Method(
                _kind(rpc), GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type), handler
            )
    if not methods:
        raise InvalidArgument(f"{type(target).__name__!r} has no method of {descriptor.full_name!r}")
    return methods


def snake_case(name: str) -> str:
    """An rpc's name as Python writes it: `CloseIO` is `close_io`, `ListPids` is `list_pids`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def peer_of(sock: socket.socket) -> Peer | None:
    """Who is at the other end of a connected unix socket; None for other families."""
    if sock.family != socket.AF_UNIX:
        return None
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _kind(rpc: MethodDescriptor) -> Kind:
    if rpc.client_streaming:
        return Kind.BIDI if rpc.server_streaming else Kind.CLIENT_STREAM
    return Kind.SERVER_STREAM if rpc.server_streaming else Kind.UNARY
