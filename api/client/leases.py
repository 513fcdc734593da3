"""Leases: hold what nothing else refers to yet."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from moored.api.client.connection import Calls
from moored.api.client.wire import nanoseconds
from moored.api.services.leases.v1 import leases_pb2 as pb
from moored.api.services.leases.v1 import leases_pb2_grpc
from moored.kernel.errors import NotFound
from moored.kernel.ports.content import NO_LABELS
from moored.kernel.ports.leases import Lease, Resource

EXPIRE: Final = "containerd.io/gc.expire"
DAY: Final = 86400.0


class Leases:
    """The leases of the namespace. Errors as `kernel.ports.leases`.

    `Client.lease` makes one for a block and puts the calls in it under it.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = leases_pb2_grpc.LeasesStub(calls.channel)

    async def list(self, *filters: str) -> list[Lease]:
        """Give those that match any filter (fields `id`, `labels`), by id."""
        answer = await self._calls.unary(self._stub.List, pb.ListRequest(filters=filters))
        return [_lease(one) for one in answer.leases]

    async def create(
        self,
        id: str = "",  # noqa: A002 - the field's term
        *,
        seconds: float | None = None,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Lease:
        """Add one, under a new id if none is given; after the seconds it holds nothing any more. AlreadyExists."""
        given = dict(labels)
        if seconds is not None:
            given[EXPIRE] = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
        answer = await self._calls.unary(self._stub.Create, pb.CreateRequest(id=id, labels=given))
        return _lease(answer.lease)

    async def delete(self, id: str, *, sync: bool = False) -> None:  # noqa: A002 - the field's term
        """Remove one; sync waits until what only it held is gone. Raises NotFound."""
        await self._calls.unary(self._stub.Delete, pb.DeleteRequest(id=id, sync=sync), slow=sync)

    async def add(self, lease: str, resource: Resource) -> None:
        """Hold one more thing."""
        request = pb.AddResourceRequest(id=lease, resource=pb.Resource(id=resource.id, type=resource.type))
        await self._calls.unary(self._stub.AddResource, request)

    async def remove(self, lease: str, resource: Resource) -> None:
        """Hold it no longer."""
        request = pb.DeleteResourceRequest(id=lease, resource=pb.Resource(id=resource.id, type=resource.type))
        await self._calls.unary(self._stub.DeleteResource, request)

    async def resources(self, lease: str) -> Sequence[Resource]:
        """Give what it holds."""
        answer = await self._calls.unary(self._stub.ListResources, pb.ListResourcesRequest(id=lease))
        return [Resource(one.type, one.id) for one in answer.resources]


def _lease(message: pb.Lease) -> Lease:
    return Lease(id=message.id, labels=dict(message.labels), created_at=nanoseconds(message.created_at))


@asynccontextmanager
async def new_lease(
    calls: Calls,
    *,
    id: str = "",  # noqa: A002 - the field's term
    seconds: float | None = DAY,
    labels: Mapping[str, str] = NO_LABELS,
) -> AsyncGenerator[Calls]:
    """Give calls under a new lease for the block; it ends with the block, or after the seconds if nobody ends it."""
    leases = Leases(calls)
    lease = await leases.create(id, seconds=seconds, labels=labels)
    try:
        yield calls.with_lease(lease.id)
    finally:
        with suppress(NotFound):
            await leases.delete(lease.id)


@asynccontextmanager
async def under_lease(calls: Calls) -> AsyncGenerator[Calls]:
    """Give calls under the lease that they have, or a new one for the block."""
    if calls.lease:
        yield calls
    else:
        async with new_lease(calls) as leased:
            yield leased
