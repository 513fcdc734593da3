"""The gRPC health service over plugin outcomes.

Names that can be asked for: "" is the daemon as a whole, SERVING while nothing essential or required is missing; the
full name of a gRPC service and a plugin's URI are SERVING while that plugin runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as rpc

from moored.kernel.errors import NotFound
from moored.kernel.hooks import hookimpl
from moored.kernel.ports.daemon import DaemonView, Outcome, PluginRecord
from moored.kernel.ports.services import GrpcRegistrar

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """grpc.health.v1.Health."""

    def __init__(self, daemon: DaemonView) -> None:
        self._daemon = daemon
        self._registrars: list[GrpcRegistrar] = []
        self._changed = asyncio.Event()

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        self._registrars.append(server)
        rpc.add_HealthServicer_to_server(cast(Any, self), cast(Any, server))

    @hookimpl
    def moored_plugin_settled(self, record: PluginRecord) -> None:
        """Wake the watchers."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:  # noqa: N802
        """The status of one name. Errors: NotFound."""
        status = self._statuses().get(request.service)
        if status is None:
            raise NotFound("unknown service", bare=True)
        return pb.HealthCheckResponse(status=status)

    async def List(self, request: pb.HealthListRequest, context: Any) -> pb.HealthListResponse:  # noqa: N802
        """The status of every name."""
        found = {name: pb.HealthCheckResponse(status=status) for name, status in self._statuses().items()}
        return pb.HealthListResponse(statuses=found)

    async def Watch(  # noqa: N802
        self,
        request: pb.HealthCheckRequest,
        context: Any,
    ) -> AsyncGenerator[pb.HealthCheckResponse]:
        """The status of one name now and at every change; a name that is not known may become known."""
        last = None
        while True:
            changed = self._changed
            status = self._statuses().get(request.service, SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield pb.HealthCheckResponse(status=status)
            await changed.wait()

    def _statuses(self) -> dict[str, pb.HealthCheckResponse.ServingStatus]:
        found = {
            record.uri: SERVING if record.outcome is Outcome.OK else NOT_SERVING for record in self._daemon.plugins()
        }
        for registrar in self._registrars:
            for service, owner in registrar.service_owners().items():
                found[service] = found.get(owner, NOT_SERVING)
        found[""] = NOT_SERVING if self._daemon.unhealthy() else SERVING
        return found
