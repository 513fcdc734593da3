"""The snapshotter of another process, reached over containerd's snapshots service.

Its snapshots are those of the namespace and lease of each call, which travel with it; most such processes know
neither. What the port promises and a service may not keep is seen to here: keys that are empty, filters that do not
parse, and a parent that is given to a commit. A call that is not answered in time (DeadlineExceeded), or whose
connection breaks, may have done its work all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar

from moored.api.convert import to_ns
from moored.kernel.errors import DeadlineExceeded, InvalidArgument, Unavailable, Unimplemented
from moored.kernel.filters import compile_filters
from moored.kernel.namespaces import current_lease, namespace_or_empty
from moored.kernel.plugin import Registration
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import NO_LABELS, REBASE, Info, Kind, Labels, Snapshotter, Usage
from moored.kernel.workers import to_the_end
from moored.plugins.proxy.endpoint import ProxySettings, RemoteEndpoint, registration_of
from moored.plugins.proxy.wire import mounts_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")

SERVICE: Final = "/containerd.services.snapshots.v1.Snapshots/"

_KINDS: Final[Mapping[int, Kind]] = {1: Kind.VIEW, 2: Kind.ACTIVE, 3: Kind.COMMITTED}


def registration(name: str, settings: ProxySettings) -> Registration[Snapshotter, None]:
    """Make the plugin `io.containerd.snapshotter.v1.<name>`. Raises InvalidArgument for an address that cannot be."""
    capabilities = frozenset(settings.capabilities)
    return registration_of(name, settings, lambda endpoint: RemoteSnapshotter(endpoint, name, capabilities))


class RemoteSnapshotter:
    """The port's Snapshotter over an endpoint, which stays the caller's.

    name           by which the other side may tell several snapshotters apart
    capabilities   of the other side, which has no way to tell them itself
    """

    def __init__(self, endpoint: RemoteEndpoint, name: str, capabilities: frozenset[str] = frozenset()) -> None:
        self._endpoint = endpoint
        self._name = name
        self._capabilities = capabilities
        self._calls: set[asyncio.Future[Any]] = set()
        self._closed = False

    @property
    def capabilities(self) -> frozenset[str]:
        """See the port."""
        return self._capabilities

    async def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """See the port."""
        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(key)
        request = pb.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return mounts_of((await self._unary("Prepare", request, pb.PrepareSnapshotResponse)).mounts)

    async def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """See the port."""
        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(key)
        request = pb.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return mounts_of((await self._unary("View", request, pb.ViewSnapshotResponse)).mounts)

    async def mounts(self, key: str) -> list[Mount]:
        """See the port."""
        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(key)
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return mounts_of((await self._unary("Mounts", request, pb.MountsResponse)).mounts)

    async def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """See the port."""
        from google.protobuf.empty_pb2 import Empty

        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(name, key)
        if parent:
            parent = await self._new_parent(key, parent)
        request = pb.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key, labels=labels, parent=parent)
        await self._unary("Commit", request, Empty)

    async def _new_parent(self, key: str, parent: str) -> str:
        """Give the parent that a commit has to name: services take one in silence where they make no use of it."""
        has = (await self.stat(key)).parent
        if has not in ("", parent):
            raise InvalidArgument(f"snapshot {key!r} has the parent {has!r}, it cannot become {parent!r}")
        if not has and REBASE not in self._capabilities:
            raise Unimplemented(f"snapshotter {self._name!r} cannot give snapshot {key!r} a parent when it commits it")
        return "" if has else parent

    async def stat(self, name: str) -> Info:
        """See the port."""
        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(name)
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=name)
        return _info((await self._unary("Stat", request, pb.StatSnapshotResponse)).info)

    async def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Info:
        """See the port."""
        from google.protobuf.field_mask_pb2 import FieldMask

        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(name)
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=pb.Info(name=name, labels=labels),
            update_mask=FieldMask(paths=paths) if paths else None,
        )
        return _info((await self._unary("Update", request, pb.UpdateSnapshotResponse)).info)

    async def usage(self, name: str) -> Usage:
        """See the port."""
        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(name)
        answer = await self._unary("Usage", pb.UsageRequest(snapshotter=self._name, key=name), pb.UsageResponse)
        return Usage(answer.size, answer.inodes)

    async def remove(self, name: str) -> None:
        """See the port."""
        from google.protobuf.empty_pb2 import Empty

        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check(name)
        await self._unary("Remove", pb.RemoveSnapshotRequest(snapshotter=self._name, key=name), Empty)

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """See the port."""
        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check()
        compile_filters(filters)
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        stream = self._endpoint.server_stream(f"{SERVICE}List", request, pb.ListSnapshotsResponse, namespace_or_empty())
        async with aclosing(stream) as answers:
            while (answer := await self._next(answers)) is not None:
                for info in answer.info:
                    yield _info(info)

    async def _next(self, answers: AsyncGenerator[M]) -> M | None:
        """Give the next answer, None at the end; who listens may take longer than who answers."""
        try:
            async with asyncio.timeout(self._endpoint.answer_timeout):
                return await anext(answers, None)
        except TimeoutError:
            seconds, address = self._endpoint.answer_timeout, self._endpoint.address
            raise DeadlineExceeded(f"no answer from proxy at {address!r} within {seconds:g}s") from None

    async def cleanup(self) -> None:
        """See the port; of no effect where the other side offers none, which then sees to its files by itself."""
        from google.protobuf.empty_pb2 import Empty

        from moored.api.services.snapshots.v1 import snapshots_pb2 as pb

        self._check()
        try:
            await self._unary("Cleanup", pb.CleanupRequest(snapshotter=self._name), Empty)
        except Unimplemented:
            return

    async def close(self) -> None:
        """See the port; the other side goes on."""
        self._closed = True
        while self._calls:
            await asyncio.wait(self._calls)

    async def _unary(self, method: str, request: Message, response_type: type[M]) -> M:
        call = asyncio.ensure_future(
            self._endpoint.unary(
                SERVICE + method,
                request,
                response_type,
                namespace_or_empty(),
                lease=current_lease(),
                timeout=self._endpoint.answer_timeout,
            )
        )
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await to_the_end(call)

    def _check(self, *keys: str) -> None:
        if self._closed:
            raise Unavailable(f"snapshotter {self._name!r} is closed")
        if not all(keys):
            raise InvalidArgument("snapshot key must not be empty")


def _info(info: pb.Info) -> Info:
    return Info(
        name=info.name,
        kind=_KINDS.get(info.kind, Kind.COMMITTED),
        parent=info.parent,
        labels=dict(info.labels),
        created_at=to_ns(info.created_at) or 0,
        updated_at=to_ns(info.updated_at) or 0,
    )
