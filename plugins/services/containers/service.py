"""The containers service on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from moored.api.convert import Encodes, field, repeated, set_timestamp
from moored.api.services.containers.v1 import containers_pb2 as pb
from moored.api.services.containers.v1 import containers_pb2_grpc as rpc
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.containers import Container, ContainerStore, TypedBytes
from moored.kernel.ports.services import GrpcRegistrar

EMPTY = Empty()
CONTAINERS = pb.ListContainersResponse.CONTAINERS_FIELD_NUMBER
CONTAINER = pb.ListContainerMessage.CONTAINER_FIELD_NUMBER


class ContainersService(rpc.ContainersServicer):
    """containerd.services.containers.v1.Containers."""

    def __init__(self, containers: ContainerStore) -> None:
        self._containers = containers

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_ContainersServicer_to_server(self, cast(Any, server))

    async def Get(self, request: pb.GetContainerRequest, context: Any) -> pb.GetContainerResponse:  # noqa: N802
        """One container. Errors: NotFound."""
        return pb.GetContainerResponse(container=to_message(await self._containers.get(request.id)))

    async def List(self, request: pb.ListContainersRequest, context: Any) -> Any:  # noqa: N802
        """Containers that match, by id: the answer or its bytes. Errors: InvalidArgument."""
        try:
            if isinstance(self._containers, Encodes):
                return await asyncio.to_thread(repeated, CONTAINERS, await self._containers.encoded(request.filters))
            found = await self._containers.list(request.filters)
        except InvalidArgument as error:
            raise _as_known(error) from error
        return await asyncio.to_thread(_listed, found)

    async def ListStream(self, request: pb.ListContainersRequest, context: Any) -> AsyncGenerator[Any]:  # noqa: N802
        """The same, one a message. Errors: InvalidArgument."""
        try:
            if isinstance(self._containers, Encodes):
                encoded = await self._containers.encoded(request.filters)
                encoded.reverse()
                while encoded:
                    yield field(CONTAINER, encoded.pop())
                return
            async with aclosing(self._containers.stream(request.filters)) as found:
                async for container in found:
                    message = pb.ListContainerMessage()
                    fill(message.container, container)
                    yield message
        except InvalidArgument as error:
            raise _as_known(error) from error

    async def Create(  # noqa: N802
        self, request: pb.CreateContainerRequest, context: Any
    ) -> pb.CreateContainerResponse:
        """Add a container. Errors: InvalidArgument, AlreadyExists."""
        _check_given(request)
        created = await self._containers.create(from_message(request.container))
        return pb.CreateContainerResponse(container=to_message(created))

    async def Update(  # noqa: N802
        self, request: pb.UpdateContainerRequest, context: Any
    ) -> pb.UpdateContainerResponse:
        """Change a container. Errors: InvalidArgument, NotFound."""
        _check_given(request)
        if not request.container.id:
            raise InvalidArgument("Container.ID required", bare=True)
        updated = await self._containers.update(from_message(request.container), request.update_mask.paths)
        return pb.UpdateContainerResponse(container=to_message(updated))

    async def Delete(self, request: pb.DeleteContainerRequest, context: Any) -> Empty:  # noqa: N802
        """Remove a container's record. Errors: NotFound."""
        await self._containers.delete(request.id)
        return EMPTY


def to_message(container: Container) -> pb.Container:
    """The container on the wire."""
    message = pb.Container()
    fill(message, container)
    return message


def fill(message: pb.Container, container: Container) -> None:
    """Write the container into an empty message, which is half of the work of making one from its parts."""
    message.id = container.id
    if container.labels:
        message.labels.update(container.labels)
    message.image = container.image
    message.runtime.name = container.runtime
    if container.runtime_options is not None:
        _fill_any(message.runtime.options, container.runtime_options)
    if container.spec is not None:
        _fill_any(message.spec, container.spec)
    message.snapshotter = container.snapshotter
    message.snapshot_key = container.snapshot_key
    set_timestamp(message.created_at, container.created_at)
    set_timestamp(message.updated_at, container.updated_at)
    for key, value in container.extensions.items():
        _fill_any(message.extensions[key], value)
    message.sandbox = container.sandbox


def from_message(message: pb.Container) -> Container:
    """The container of the wire, without its times, which are the store's to give."""
    runtime = message.runtime
    return Container(
        id=message.id,
        image=message.image,
        runtime=runtime.name,
        runtime_options=_typed(runtime.options) if runtime.HasField("options") else None,
        spec=_typed(message.spec) if message.HasField("spec") else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox=message.sandbox,
        labels=dict(message.labels),
        extensions={key: _typed(value) for key, value in message.extensions.items()},
    )


def _fill_any(message: AnyMessage, given: TypedBytes) -> None:
    message.SetInParent()  # also if both are empty
    message.type_url, message.value = given.type_url, given.value


def _typed(message: AnyMessage) -> TypedBytes:
    return TypedBytes(message.type_url, message.value)


def _listed(containers: Sequence[Container]) -> pb.ListContainersResponse:
    answer = pb.ListContainersResponse()
    add = answer.containers.add
    for container in containers:
        fill(add(), container)
    return answer


def _check_given(request: pb.CreateContainerRequest | pb.UpdateContainerRequest) -> None:
    if not request.HasField("container"):
        raise InvalidArgument("request has no container")


def _as_known(error: InvalidArgument) -> InvalidArgument:
    """Give the error of a filter with its suffix twice, as clients know it from this service."""
    if not error.text.startswith("filters: "):
        return error
    return InvalidArgument(f"{error.text}: invalid argument: invalid argument", bare=True)
