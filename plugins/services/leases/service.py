"""The leases service on the wire."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.services.leases.v1 import leases_pb2 as pb
from moored.api.services.leases.v1 import leases_pb2_grpc as rpc
from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.ports.leases import Lease, LeaseManager, Resource
from moored.kernel.ports.objects import Scheduler
from moored.kernel.ports.services import GrpcRegistrar

EMPTY = Empty()


class LeasesService(rpc.LeasesServicer):
    """containerd.services.leases.v1.Leases. Without a collector, calls that ask to wait for one are refused."""

    def __init__(self, leases: LeaseManager, collector: Scheduler | None) -> None:
        self._leases = leases
        self._collector = collector

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_LeasesServicer_to_server(self, cast(Any, server))

    async def Create(self, request: pb.CreateRequest, context: Any) -> pb.CreateResponse:  # noqa: N802
        """Add a lease. Errors: AlreadyExists."""
        return pb.CreateResponse(lease=_message(await self._leases.create(request.id, dict(request.labels))))

    async def Delete(self, request: pb.DeleteRequest, context: Any) -> Empty:  # noqa: N802
        """Remove a lease, and wait for a collection if asked to. Errors: NotFound; Unknown if that fails."""
        if request.sync and self._collector is None:
            raise FailedPrecondition("no garbage collector is running, only deletes without sync work")
        await self._leases.delete(request.id)
        if request.sync and self._collector is not None:
            await self._collector.collect_now()
        return EMPTY

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:  # noqa: N802
        """Leases that match, by id. Errors: InvalidArgument."""
        try:
            found = await self._leases.list(request.filters)
        except InvalidArgument as error:
            raise _as_known(error) from error
        return pb.ListResponse(leases=map(_message, found))

    async def AddResource(self, request: pb.AddResourceRequest, context: Any) -> Empty:  # noqa: N802
        """Hold one more resource. Errors: NotFound, InvalidArgument, Unimplemented."""
        await self._leases.add(request.id, _resource(request))
        return EMPTY

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Any) -> Empty:  # noqa: N802
        """Hold a resource no longer. Errors: NotFound, InvalidArgument, Unimplemented."""
        await self._leases.remove(request.id, _resource(request))
        return EMPTY

    async def ListResources(  # noqa: N802
        self, request: pb.ListResourcesRequest, context: Any
    ) -> pb.ListResourcesResponse:
        """What a lease holds. Errors: NotFound."""
        held = await self._leases.resources(request.id)
        return pb.ListResourcesResponse(resources=[pb.Resource(id=one.id, type=one.type) for one in held])


def _message(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)


def _resource(request: pb.AddResourceRequest | pb.DeleteResourceRequest) -> Resource:
    if not request.HasField("resource"):
        raise InvalidArgument("request has no resource")
    return Resource(request.resource.type, request.resource.id)


def _as_known(error: InvalidArgument) -> InvalidArgument:
    """Give the error of a filter with its suffix twice, as clients know it from this service."""
    if not error.text.startswith("filters: "):
        return error
    return InvalidArgument(f"{error.text}: invalid argument: invalid argument", bare=True)
