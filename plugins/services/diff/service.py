"""The diff service on the wire, over the daemon's differ. Source: semantics 3.6."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from moored.api.convert import to_ns
from moored.api.services.diff.v1 import diff_pb2 as pb
from moored.api.services.diff.v1 import diff_pb2_grpc as rpc
from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.kernel.errors import InvalidArgument
from moored.kernel.namespaces import current_namespace
from moored.kernel.ports.diff import Differ
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.services import GrpcRegistrar


class DiffService(rpc.DiffServicer):
    """containerd.services.diff.v1.Diff."""

    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_DiffServicer_to_server(self, cast(Any, server))

    async def Apply(self, request: pb.ApplyRequest, context: Any) -> pb.ApplyResponse:  # noqa: N802
        """Unpack a layer onto mounts."""
        current_namespace()
        if not request.HasField("diff"):
            raise InvalidArgument("diff is missing, wanted the descriptor of a layer")
        applied = await self._differ.apply(
            _descriptor(request.diff),
            _mounts(request.mounts),
            payloads={name: payload.SerializeToString() for name, payload in request.payloads.items()},
            sync_fs=request.sync_fs,
        )
        return pb.ApplyResponse(applied=_message(applied))

    async def Diff(self, request: pb.DiffRequest, context: Any) -> pb.DiffResponse:  # noqa: N802
        """Store the difference of two file systems as a layer."""
        current_namespace()
        made = await self._differ.compare(
            _mounts(request.left),
            _mounts(request.right),
            media_type=request.media_type,
            reference=request.ref,
            labels=dict(request.labels),
            source_date_epoch=to_ns(request.source_date_epoch) if request.HasField("source_date_epoch") else None,
        )
        return pb.DiffResponse(diff=_message(made))


def _descriptor(message: DescriptorMessage) -> Descriptor:
    return Descriptor(
        media_type=message.media_type,
        digest=message.digest,
        size=message.size,
        annotations=dict(message.annotations),
    )


def _message(descriptor: Descriptor) -> DescriptorMessage:
    return DescriptorMessage(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def _mounts(messages: Iterable[MountMessage]) -> list[Mount]:
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages]
