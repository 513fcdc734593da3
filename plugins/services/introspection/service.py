"""The introspection service on the wire."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf.empty_pb2 import Empty
from google.rpc.status_pb2 import Status

from moored.api.convert import timestamp
from moored.api.services.introspection.v1 import introspection_pb2 as pb
from moored.api.services.introspection.v1 import introspection_pb2_grpc as rpc
from moored.api.types.platform_pb2 import Platform
from moored.kernel.errors import FailedPrecondition, NotFound, Unimplemented
from moored.kernel.ports.daemon import Outcome, PluginRecord
from moored.kernel.ports.introspection import Introspection
from moored.kernel.ports.services import GrpcRegistrar

FAILED = 2
"""The code of every plugin that does not run: UNKNOWN, whatever the reason."""


class IntrospectionService(rpc.IntrospectionServicer):
    """containerd.services.introspection.v1.Introspection."""

    def __init__(self, introspection: Introspection) -> None:
        self._introspection = introspection

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
        """One plugin. Errors: NotFound; for options FailedPrecondition if it does not run, else Unimplemented."""
        record = self._record(request.type, request.id)
        if request.HasField("options"):
            if record.outcome is not Outcome.OK:
                raise FailedPrecondition(
                    f"plugin '{record.uri}' is {record.outcome.value}, it has no further information"
                )
            raise Unimplemented(f"plugin '{record.uri}' has no further information")
        return pb.PluginInfoResponse(plugin=plugin_message(record))

    def _record(self, kind: str, id_: str) -> PluginRecord:
        for record in self._introspection.plugins(()):
            if (record.type, record.id) == (kind, id_):
                return record
        raise NotFound(f"plugin {kind}.{id_} not found")


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
