"""Faces on the wire: a plugin of these types adds one service to every gRPC or ttrpc server of the daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from moored.kernel.plugin import PluginType


class GrpcRegistrar(Protocol):
    """The part of a gRPC server that generated `add_XServicer_to_server` functions call."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Take handlers that look a method up by its full name."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Take the handlers of one service by method name."""

    def service_owners(self) -> Mapping[str, str]:
        """Full name of each service of this server -> URI of the plugin behind it; grows until the server starts."""


class Encoded(bytes):
    """The bytes of a message, which a gRPC handler may answer with in place of the message."""

    __slots__ = ()


class GrpcService(Protocol):
    """One gRPC service.

    Its handlers are coroutines (or async generators) on the daemon's event loop. They answer with messages, or with
    their bytes where these are at hand (`Encoded`). They raise `kernel.errors`; the server turns these into codes, and
    any other exception into UNKNOWN with a logged traceback. Namespace and lease of the call are in
    `kernel.namespaces`. A cancelled call gets CancelledError.
    """

    def register(self, server: GrpcRegistrar) -> None:
        """Add the handlers to a server that has not started; called once for each server, before its start."""


class TtrpcRegistrar(Protocol):
    """The part of a ttrpc server that takes services."""

    def add_service(self, descriptor: Any, servicer: object) -> None:
        """Take a protobuf ServiceDescriptor and an object with a coroutine method for each of its RPCs, by RPC name."""


class TtrpcService(Protocol):
    """One ttrpc service; the same rules as for GrpcService."""

    def register(self, server: TtrpcRegistrar) -> None:
        """Add the handlers to a server that has not started."""


GRPC: PluginType[GrpcService] = PluginType("io.containerd.grpc.v1")
TTRPC: PluginType[TtrpcService] = PluginType("io.containerd.ttrpc.v1")
