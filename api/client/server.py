"""What a daemon tells of itself: version, identity, plugins; and what only moored tells."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from moored.api.client.connection import Calls
from moored.api.client.wire import any_message, platform_of, typed_bytes
from moored.api.convert import pack, to_datetime, unpack
from moored.api.moored.daemon.v1 import daemon_pb2, daemon_pb2_grpc
from moored.api.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from moored.api.services.version.v1 import version_pb2_grpc
from moored.api.types import introspection_pb2 as types
from moored.kernel.errors import NotFound, Unimplemented
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.introspection import Deprecation, ServerIdentity

_SKIPPED: Final = "skip plugin"
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"
"""HealthCheckResponse with status SERVING."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which program answers."""

    version: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One plugin; error is empty for one that works, skipped tells a refusal to start from a failure."""

    type: str
    id: str
    requires: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = ()
    exports: Mapping[str, str]
    capabilities: tuple[str, ...] = ()
    error: str = ""
    skipped: bool = False

    @property
    def uri(self) -> str:
        """Type and id in one."""
        return f"{self.type}.{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What a runtime says of itself; features are OCI's, JSON."""

    name: str
    version: str
    revision: str
    features: TypedBytes | None
    annotations: Mapping[str, str]


class Server:
    """Any daemon of this API. Errors: those of the connection, and those named."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._versions = version_pb2_grpc.VersionStub(calls.channel)
        self._introspection = introspection_pb2_grpc.IntrospectionStub(calls.channel)

    async def version(self) -> Version:
        """Ask for version and revision."""
        answer = await self._calls.unary(self._versions.Version, Empty())
        return Version(answer.version, answer.revision)

    async def identity(self) -> ServerIdentity:
        """Ask who it is: uuid, pid, pid namespace, deprecated things in use."""
        answer = await self._calls.unary(self._introspection.Server, Empty())
        return ServerIdentity(answer.uuid, answer.pid, answer.pidns, [_deprecation(one) for one in answer.deprecations])

    async def plugins(self, *filters: str) -> list[PluginInfo]:
        """List the plugins that match any filter (fields `type`, `id`), all without one. InvalidArgument."""
        request = introspection_pb2.PluginsRequest(filters=filters)
        answer = await self._calls.unary(self._introspection.Plugins, request)
        return [_plugin(plugin) for plugin in answer.plugins]

    async def works(self, type: str, id: str = "") -> bool:  # noqa: A002 - the fields' terms
        """Whether there is a plugin of the type (and id) that started."""
        wanted = f"type=={type}" + (f",id=={id}" if id else "")
        return any(not plugin.error for plugin in await self.plugins(wanted))

    async def runtime(self, name: str = "io.containerd.runc.v2", options: TypedBytes | None = None) -> RuntimeInfo:
        """Ask a runtime, by its name or path, who it is. Raises Unimplemented before containerd 2.0."""
        wanted = types.RuntimeRequest(runtime_path=name, options=any_message(options))
        request = introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task", options=pack(wanted))
        answer = await self._calls.unary(self._introspection.PluginInfo, request)
        if not answer.HasField("extra"):
            raise NotFound(f"the daemon tells nothing of runtime {name!r}")
        info = unpack(answer.extra, types.RuntimeInfo)
        return RuntimeInfo(
            name=info.name,
            version=info.version.version,
            revision=info.version.revision,
            features=typed_bytes(info.features) if info.HasField("features") else None,
            annotations=dict(info.annotations),
        )

    async def healthy(self) -> bool:
        """Whether it says that it serves."""
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._calls.channel.unary_unary(_HEALTH)
        try:
            return await self._calls.unary(check, b"") == _SERVING
        except Unimplemented:
            return False


class Daemon:
    """What only moored tells. Errors: Unimplemented from any other daemon."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = daemon_pb2_grpc.DaemonStub(calls.channel)

    async def plugins(self) -> daemon_pb2.PluginsResponse:
        """Every plugin with its outcome, in the order of start."""
        return await self._calls.unary(self._stub.Plugins, daemon_pb2.PluginsRequest())

    async def config(self) -> daemon_pb2.ConfigResponse:
        """The configuration in force."""
        return await self._calls.unary(self._stub.Config, daemon_pb2.ConfigRequest())

    async def check(self) -> daemon_pb2.CheckResponse:
        """What the files on disk would change."""
        return await self._calls.unary(self._stub.Check, daemon_pb2.CheckRequest())

    async def backup(self) -> AsyncGenerator[bytes]:
        """Yield the pieces of a file with a copy of all metadata, as it is at one moment after the call.

        Raises ResourceExhausted where the daemon has no room to make it.
        """
        async with aclosing(self._calls.server_stream(self._stub.Backup, daemon_pb2.BackupRequest())) as pieces:
            async for piece in pieces:
                yield piece.data


def _plugin(message: introspection_pb2.Plugin) -> PluginInfo:
    error = message.init_err.message if message.HasField("init_err") else ""
    return PluginInfo(
        type=message.type,
        id=message.id,
        requires=tuple(message.requires),
        platforms=tuple(platform_of(platform) for platform in message.platforms),
        exports=dict(message.exports),
        capabilities=tuple(message.capabilities),
        error=error,
        skipped=error.endswith(_SKIPPED),
    )


def _deprecation(message: introspection_pb2.DeprecationWarning) -> Deprecation:
    when = to_datetime(message.last_occurrence)
    assert when is not None
    return Deprecation(message.id, message.message, when)
