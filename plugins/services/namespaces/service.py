"""The namespaces service on the wire."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf.empty_pb2 import Empty

from moored.api.errors import to_status
from moored.api.services.namespaces.v1 import namespace_pb2 as pb
from moored.api.services.namespaces.v1 import namespace_pb2_grpc as rpc
from moored.kernel.errors import InvalidArgument, Unknown
from moored.kernel.ports.namespaces import NamespaceStore
from moored.kernel.ports.services import GrpcRegistrar

EMPTY = Empty()


class NamespacesService(rpc.NamespacesServicer):
    """containerd.services.namespaces.v1.Namespaces; no call needs a namespace of its own."""

    def __init__(self, namespaces: NamespaceStore) -> None:
        self._namespaces = namespaces

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_NamespacesServicer_to_server(self, cast(Any, server))

    async def Get(self, request: pb.GetNamespaceRequest, context: Any) -> pb.GetNamespaceResponse:  # noqa: N802
        """One namespace; one that does not exist has no labels."""
        labels = await self._namespaces.labels(request.name)
        return pb.GetNamespaceResponse(namespace=pb.Namespace(name=request.name, labels=labels))

    async def List(self, request: pb.ListNamespacesRequest, context: Any) -> pb.ListNamespacesResponse:  # noqa: N802
        """All namespaces; the filter is not looked at."""
        found = await self._namespaces.list()
        return pb.ListNamespacesResponse(namespaces=[pb.Namespace(name=name, labels=labels) for name, labels in found])

    async def Create(  # noqa: N802
        self, request: pb.CreateNamespaceRequest, context: Any
    ) -> pb.CreateNamespaceResponse:
        """Add a namespace; the answer is what was asked for. Errors: InvalidArgument, AlreadyExists."""
        _check_given(request)
        await self._namespaces.create(request.namespace.name, dict(request.namespace.labels))
        return pb.CreateNamespaceResponse(namespace=request.namespace)

    async def Update(  # noqa: N802
        self, request: pb.UpdateNamespaceRequest, context: Any
    ) -> pb.UpdateNamespaceResponse:
        """Set labels; the answer is empty. Errors: InvalidArgument, and Unknown for labels, as clients know it."""
        _check_given(request)
        given = request.namespace
        try:
            await self._namespaces.update(given.name, dict(given.labels), request.update_mask.paths)
        except InvalidArgument as error:
            if not error.text.startswith("namespace.Labels"):
                raise
            raise Unknown(to_status(error)[1]) from error
        return pb.UpdateNamespaceResponse()

    async def Delete(self, request: pb.DeleteNamespaceRequest, context: Any) -> Empty:  # noqa: N802
        """Remove an empty namespace. Errors: NotFound, FailedPrecondition."""
        await self._namespaces.delete(request.name)
        return EMPTY


def _check_given(request: pb.CreateNamespaceRequest | pb.UpdateNamespaceRequest) -> None:
    if not request.HasField("namespace"):
        raise InvalidArgument("request has no namespace")
