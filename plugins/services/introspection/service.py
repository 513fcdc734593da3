"""The introspection service on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from moored.api.convert import timestamp
from moored.api.services.introspection.v1 import introspection_pb2 as pb
from moored.api.services.introspection.v1 import introspection_pb2_grpc as rpc
from moored.api.types.introspection_pb2 import RuntimeInfo as RuntimeInfoMessage
from moored.api.types.introspection_pb2 import RuntimeRequest, RuntimeVersion
from moored.api.types.platform_pb2 import Platform
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.daemon import Outcome, PluginRecord
from moored.kernel.ports.introspection import Introspection
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.ports.tasks import RUNTIME, Runtime, RuntimeInfo

FAILED = 2
"""The code of every plugin that does not run: UNKNOWN, whatever the reason."""


class IntrospectionService(rpc.IntrospectionServicer):
    """containerd.services.introspection.v1.Introspection."""

    def __init__(self, introspection: Introspection, runtimes: Mapping[str, Runtime]) -> None:
        self._introspection = introspection
        self._runtimes = runtimes

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_IntrospectionServicer_to_server(self, cast(Any, server))

    async def Plugins(self, request: pb.PluginsRequest, context: Any) -> pb.PluginsResponse:  # noqa: N802
        """Plugins that match, in start order. Errors: InvalidArgument for a bad filter."""
        return pb.PluginsResponse(plugins=map(plugin_message, self._introspection.plugins(request.filters)))

    async def Server(self, request: Empty, context: Any) -> pb.ServerResponse:  # noqa: N802
        """Who the daemon is, and what deprecated things are in use."""
        identity = await self._introspection.server()
        return pb.ServerResponse(
            uuid=identity.uuid,
            pid=identity.pid,
            pidns=identity.pidns,
            deprecations=[
                pb.DeprecationWarning(id=one.id, message=one.message, last_occurrence=timestamp(one.last_occurrence))
                for one in identity.deprecations
            ],
        )

    async def PluginInfo(self, request: pb.PluginInfoRequest, context: Any) -> pb.PluginInfoResponse:  # noqa: N802
        """One plugin, and with options what only it can tell: a runtime about the name in a RuntimeRequest.

        Errors: NotFound; for options FailedPrecondition if it does not run, Unimplemented if it has no more to tell.
        """
        record = self._record(request.type, request.id)
        if request.HasField("options"):
            if record.outcome is not Outcome.OK:
                raise FailedPrecondition(
                    f"plugin '{record.uri}' is {record.outcome.value}, it has no further information"
                )
            runtime = self._runtimes.get(record.id) if record.type == RUNTIME.uri else None
            if runtime is None:
                raise Unimplemented(f"plugin '{record.uri}' has no further information")
            extra = await _runtime_info(runtime, request.options)
            return pb.PluginInfoResponse(plugin=plugin_message(record), extra=extra)
        return pb.PluginInfoResponse(plugin=plugin_message(record))

    def _record(self, kind: str, id_: str) -> PluginRecord:
        for record in self._introspection.plugins(()):
            if (record.type, record.id) == (kind, id_):
                return record
        raise NotFound(f"plugin {kind}.{id_} not found")


async def _runtime_info(runtime: Runtime, asked: AnyMessage) -> AnyMessage:
    if asked.TypeName() != RuntimeRequest.DESCRIPTOR.full_name:
        raise InvalidArgument(f"options of a runtime must be a RuntimeRequest, they are {asked.type_url!r}")
    try:
        request = RuntimeRequest.FromString(asked.value)
    except DecodeError as error:
        raise InvalidArgument(f"options of a runtime cannot be read: {error}") from error
    options = TypedBytes(request.options.type_url, request.options.value) if request.HasField("options") else None
    found = _info_message(await runtime.info(request.runtime_path or "io.containerd.runc.v2", options))
    return AnyMessage(type_url=found.DESCRIPTOR.full_name, value=found.SerializeToString())


def _info_message(info: RuntimeInfo) -> RuntimeInfoMessage:
    return RuntimeInfoMessage(
        name=info.name,
        version=RuntimeVersion(version=info.version, revision=info.revision),
        options=_any(info.options),
        features=_any(info.features),
        annotations=info.annotations,
    )


def _any(message: TypedBytes | None) -> AnyMessage | None:
    return None if message is None else AnyMessage(type_url=message.type_url, value=message.value)


def plugin_message(record: PluginRecord) -> pb.Plugin:
    """A plugin as clients of containerd know it."""
    return pb.Plugin(
        type=record.type,
        id=record.id,
        requires=record.requires,
        platforms=map(platform_message, record.platforms),
        exports=record.exports,
        capabilities=record.capabilities,
        init_err=None if record.outcome is Outcome.OK else Status(code=FAILED, message=_why(record)),
    )


def platform_message(text: str) -> Platform:
    """The Platform of `linux/arm64` or `linux/arm/v7`."""
    system, architecture, variant = [*text.split("/", 2), "", ""][:3]
    return Platform(os=system, architecture=architecture, variant=variant)


def _why(record: PluginRecord) -> str:
    if record.outcome is Outcome.SKIPPED:
        # Clients tell a skip from a fault by this ending.
        return f"{record.reason}: skip plugin" if record.reason else "skip plugin"
    return record.reason or record.outcome.value
