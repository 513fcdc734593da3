"""Snapshots of one snapshotter, for the namespace and lease of a client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from moored.api.client.connection import Calls
from moored.api.client.namespaces import Namespaces
from moored.api.client.wire import mask, mounts_of, nanoseconds
from moored.api.services.snapshots.v1 import snapshots_pb2 as pb
from moored.api.services.snapshots.v1 import snapshots_pb2_grpc
from moored.kernel.errors import NotFound, Unimplemented
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import NO_LABELS, Info, Kind, Labels, Usage

DEFAULT: Final = "overlayfs"
DEFAULT_LABEL: Final = "containerd.io/defaults/snapshotter"
"""Label of a namespace: the snapshotter that its clients use."""

_KINDS: Final[Mapping[int, Kind]] = {pb.VIEW: Kind.VIEW, pb.ACTIVE: Kind.ACTIVE, pb.COMMITTED: Kind.COMMITTED}


class Snapshots:
    """The namespace's snapshots. Errors, beside those of the connection, as `kernel.ports.snapshots.Snapshotter`."""

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self._stub = snapshots_pb2_grpc.SnapshotsStub(calls.channel)
        self._name = name

    @property
    def name(self) -> str:
        """The snapshotter's."""
        return self._name

    async def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """Make an active snapshot that shows what its parent shows, and give its mounts."""
        request = pb.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return mounts_of((await self._calls.unary(self._stub.Prepare, request)).mounts)

    async def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """Make a read-only snapshot of the parent, and give its mounts."""
        request = pb.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return mounts_of((await self._calls.unary(self._stub.View, request)).mounts)

    async def mounts(self, key: str) -> list[Mount]:
        """Give the mounts of an active snapshot or a view."""
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return mounts_of((await self._calls.unary(self._stub.Mounts, request)).mounts)

    async def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """Turn the active snapshot `key` into the committed one `name`, with these labels; a parent needs `rebase`."""
        request = pb.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key, labels=labels, parent=parent)
        await self._calls.unary(self._stub.Commit, request, slow=True)

    async def stat(self, name: str) -> Info:
        """Give what is known of a snapshot. Raises NotFound."""
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=name)
        return _info((await self._calls.unary(self._stub.Stat, request)).info)

    async def exists(self, name: str) -> bool:
        """Whether there is a snapshot of that name or key."""
        try:
            await self.stat(name)
        except NotFound:
            return False
        return True

    async def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Info:
        """Replace a snapshot's labels, or those that paths name (`labels.KEY`), and give the result."""
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name, info=pb.Info(name=name, labels=labels), update_mask=mask(paths)
        )
        return _info((await self._calls.unary(self._stub.Update, request)).info)

    async def usage(self, name: str) -> Usage:
        """Tell what it takes by itself."""
        answer = await self._calls.unary(self._stub.Usage, pb.UsageRequest(snapshotter=self._name, key=name), slow=True)
        return Usage(answer.size, answer.inodes)

    async def remove(self, name: str) -> None:
        """Remove a snapshot. Raises NotFound, FailedPrecondition for one with children."""
        await self._calls.unary(self._stub.Remove, pb.RemoveSnapshotRequest(snapshotter=self._name, key=name))

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """Give all that match any filter (fields `kind`, `name`, `parent`, `labels`), by name."""
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        async with aclosing(self._calls.server_stream(self._stub.List, request)) as answers:
            async for answer in answers:
                for info in answer.info:
                    yield _info(info)

    async def cleanup(self) -> None:
        """Remove files that belong to no snapshot; of no effect where the daemon sees to that by itself."""
        try:
            await self._calls.unary(self._stub.Cleanup, pb.CleanupRequest(snapshotter=self._name), slow=True)
        except Unimplemented:
            return


def _info(info: pb.Info) -> Info:
    return Info(
        name=info.name,
        kind=_KINDS.get(info.kind, Kind.COMMITTED),
        parent=info.parent,
        labels=dict(info.labels),
        created_at=nanoseconds(info.created_at),
        updated_at=nanoseconds(info.updated_at),
    )


async def default_snapshotter(calls: Calls) -> str:
    """Give the snapshotter that the namespace's label names, else `overlayfs`."""
    labels = (await Namespaces(calls).get(calls.namespace)).labels
    return labels.get(DEFAULT_LABEL) or DEFAULT
