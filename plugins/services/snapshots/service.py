"""The snapshots service on the wire, over the namespaced snapshotters. Source: semantics 1.3, 3.5."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast

from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.errors import to_status
from moored.api.services.snapshots.v1 import snapshots_pb2 as pb
from moored.api.services.snapshots.v1 import snapshots_pb2_grpc as rpc
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from moored.kernel.filters import compile_filters
from moored.kernel.namespaces import current_namespace
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.objects import Objects
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.ports.snapshots import Info, Kind, Snapshotter

EMPTY: Final = Empty()
PAGE: Final = 100
"""Snapshots in one message of a list."""

_KINDS: Final[Mapping[Kind, pb.Kind.ValueType]] = {
    Kind.VIEW: pb.VIEW,
    Kind.ACTIVE: pb.ACTIVE,
    Kind.COMMITTED: pb.COMMITTED,
}


class SnapshotsService(rpc.SnapshotsServicer):
    """containerd.services.snapshots.v1.Snapshots."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_SnapshotsServicer_to_server(self, cast(Any, server))

    async def Prepare(  # noqa: N802
        self, request: pb.PrepareSnapshotRequest, context: Any
    ) -> pb.PrepareSnapshotResponse:
        """Make an active snapshot."""
        snapshotter = self._snapshotter(request.snapshotter)
        current_namespace()
        _check_new(request.key)
        mounts = await snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=map(mount_message, mounts))

    async def View(self, request: pb.ViewSnapshotRequest, context: Any) -> pb.ViewSnapshotResponse:  # noqa: N802
        """Make a view."""
        snapshotter = self._snapshotter(request.snapshotter)
        current_namespace()
        _check_new(request.key)
        mounts = await snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=map(mount_message, mounts))

    async def Mounts(self, request: pb.MountsRequest, context: Any) -> pb.MountsResponse:  # noqa: N802
        """Give the mounts of an active snapshot or a view."""
        snapshotter = self._known(request.snapshotter, request.key)
        return pb.MountsResponse(mounts=map(mount_message, await snapshotter.mounts(request.key)))

    async def Commit(self, request: pb.CommitSnapshotRequest, context: Any) -> Empty:  # noqa: N802
        """Commit an active snapshot; a parent is of no effect on one that has a parent."""
        snapshotter = self._snapshotter(request.snapshotter)
        current_namespace()
        _check_new(request.name)
        self._known(request.snapshotter, request.key)
        parent = request.parent
        if parent and (await snapshotter.stat(request.key)).parent:
            parent = ""
        await snapshotter.commit(request.name, request.key, dict(request.labels), parent)
        return EMPTY

    async def Remove(self, request: pb.RemoveSnapshotRequest, context: Any) -> Empty:  # noqa: N802
        """Remove a snapshot; its disk space is freed by the next garbage collection."""
        await self._known(request.snapshotter, request.key).remove(request.key)
        return EMPTY

    async def Stat(self, request: pb.StatSnapshotRequest, context: Any) -> pb.StatSnapshotResponse:  # noqa: N802
        """Describe a snapshot."""
        info = await self._known(request.snapshotter, request.key).stat(request.key)
        return pb.StatSnapshotResponse(info=info_message(info))

    async def Update(  # noqa: N802
        self, request: pb.UpdateSnapshotRequest, context: Any
    ) -> pb.UpdateSnapshotResponse:
        """Change labels."""
        snapshotter = self._snapshotter(request.snapshotter)
        current_namespace()
        if not request.HasField("info"):
            raise InvalidArgument("update has no info, one is wanted")
        info = await snapshotter.update(request.info.name, dict(request.info.labels), request.update_mask.paths)
        return pb.UpdateSnapshotResponse(info=info_message(info))

    async def List(  # noqa: N802
        self, request: pb.ListSnapshotsRequest, context: Any
    ) -> AsyncGenerator[pb.ListSnapshotsResponse]:
        """Give what matches the filters in messages of up to PAGE; Unknown for bad filters and namespaces."""
        snapshotter = self._snapshotter(request.snapshotter)
        try:
            current_namespace()
            compile_filters(request.filters)
        except (FailedPrecondition, InvalidArgument) as error:
            raise Unknown(to_status(error)[1]) from error
        page: list[pb.Info] = []
        async for info in snapshotter.walk(*request.filters):
            page.append(info_message(info))
            if len(page) == PAGE:
                yield pb.ListSnapshotsResponse(info=page)
                page = []
        if page:
            yield pb.ListSnapshotsResponse(info=page)

    async def Usage(self, request: pb.UsageRequest, context: Any) -> pb.UsageResponse:  # noqa: N802
        """Measure a snapshot."""
        usage = await self._known(request.snapshotter, request.key).usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(self, request: pb.CleanupRequest, context: Any) -> Empty:  # noqa: N802
        """Refuse, as containerd does; garbage collection frees disk space by itself."""
        self._snapshotter(request.snapshotter)
        raise Unimplemented("snapshotter does not implement Cleanup method")

    def _snapshotter(self, name: str) -> Snapshotter:
        return self._objects.snapshotter(name)

    def _known(self, name: str, key: str) -> Snapshotter:
        """Give the snapshotter of a call on a snapshot; an empty key is one that does not exist."""
        snapshotter = self._snapshotter(name)
        current_namespace()
        if not key:
            raise NotFound("snapshot  does not exist")
        return snapshotter


def info_message(info: Info) -> pb.Info:
    """Give a snapshot as the wire has it."""
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def mount_message(mount: Mount) -> MountMessage:
    """Give a mount as the wire has it."""
    return MountMessage(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def _check_new(name: str) -> None:
    if not name:
        raise Unknown("bucket name required")
