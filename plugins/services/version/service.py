"""The version service on the wire."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf.empty_pb2 import Empty

from moored.api.services.version.v1 import version_pb2_grpc as rpc
from moored.api.services.version.v1.version_pb2 import VersionResponse
from moored.kernel.ports.daemon import DaemonView
from moored.kernel.ports.services import GrpcRegistrar


class VersionService(rpc.VersionServicer):
    """containerd.services.version.v1.Version."""

    def __init__(self, daemon: DaemonView) -> None:
        self._daemon = daemon

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_VersionServicer_to_server(self, cast(Any, server))

    async def Version(self, request: Empty, context: Any) -> VersionResponse:  # noqa: N802
        """The daemon's version and source revision."""
        return VersionResponse(version=self._daemon.version, revision=self._daemon.revision)
