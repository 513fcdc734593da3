"""The sandbox store on the wire."""

from __future__ import annotations

from typing import Any, cast

from moored.api.sandboxes import from_message, to_message
from moored.api.services.sandbox.v1 import sandbox_pb2 as pb
from moored.api.services.sandbox.v1 import sandbox_pb2_grpc as rpc
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.sandboxes import Sandbox, SandboxStore
from moored.kernel.ports.services import GrpcRegistrar


class StoreService(rpc.StoreServicer):
    """containerd.services.sandbox.v1.Store. Errors: those of the port."""

    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_StoreServicer_to_server(self, cast(Any, server))

    async def Create(self, request: pb.StoreCreateRequest, context: Any) -> pb.StoreCreateResponse:  # noqa: N802
        """Add a sandbox."""
        return pb.StoreCreateResponse(sandbox=to_message(await self._store.create(_given(request))))

    async def Update(self, request: pb.StoreUpdateRequest, context: Any) -> pb.StoreUpdateResponse:  # noqa: N802
        """Change a sandbox."""
        updated = await self._store.update(_given(request), request.fields)
        return pb.StoreUpdateResponse(sandbox=to_message(updated))

    async def Delete(self, request: pb.StoreDeleteRequest, context: Any) -> pb.StoreDeleteResponse:  # noqa: N802
        """Remove a sandbox' record."""
        await self._store.delete(request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def List(self, request: pb.StoreListRequest, context: Any) -> pb.StoreListResponse:  # noqa: N802
        """Sandboxes that match, by id."""
        try:
            found = await self._store.list(request.filters)
        except InvalidArgument as error:
            raise _as_known(error) from error
        return pb.StoreListResponse(list=map(to_message, found))

    async def Get(self, request: pb.StoreGetRequest, context: Any) -> pb.StoreGetResponse:  # noqa: N802
        """One sandbox."""
        return pb.StoreGetResponse(sandbox=to_message(await self._store.get(request.sandbox_id)))


def _given(request: pb.StoreCreateRequest | pb.StoreUpdateRequest) -> Sandbox:
    if not request.HasField("sandbox"):
        raise InvalidArgument("request has no sandbox")
    return from_message(request.sandbox)


def _as_known(error: InvalidArgument) -> InvalidArgument:
    """Give the error of a filter with its suffix twice, as clients know it from this service."""
    if not error.text.startswith("filters: "):
        return error
    return InvalidArgument(f"{error.text}: invalid argument: invalid argument", bare=True)
