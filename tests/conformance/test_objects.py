"""The object database's own stores do what their ports say, used directly and through gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from harness import GRPC_SERVER, on_loop
from moored.api.convert import timestamp, to_ns
from moored.api.errors import from_status
from moored.api.services.containers.v1 import containers_pb2 as cpb
from moored.api.services.containers.v1 import containers_pb2_grpc as crpc
from moored.api.services.images.v1 import images_pb2 as ipb
from moored.api.services.images.v1 import images_pb2_grpc as irpc
from moored.api.services.leases.v1 import leases_pb2 as lpb
from moored.api.services.leases.v1 import leases_pb2_grpc as lrpc
from moored.api.services.namespaces.v1 import namespace_pb2 as npb
from moored.api.services.namespaces.v1 import namespace_pb2_grpc as nrpc
from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage
from moored.kernel.conformance import containers, images, leases, namespaces
from moored.kernel.conformance.objects import Check, World
from moored.kernel.namespaces import LEASE, NAMESPACE
from moored.kernel.ports.containers import Container, TypedBytes
from moored.kernel.ports.images import Descriptor, Image
from moored.kernel.ports.leases import Lease, Resource
from unit.metadata.objects import SERVICES, opened

every_check = pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{suite.__name__.rpartition('.')[2]}-{check.__name__.removeprefix('check_')}")
        for suite in (containers, images, leases, namespaces)
        for check in suite.checks()
    ],
)


@every_check
@on_loop
async def test_objects(check: Check, tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await check(parts.world)


@every_check
@on_loop
async def test_objects_through_grpc(check: Check, tmp_path: Path) -> None:
    address = str(tmp_path / "m.sock")
    async with (
        opened(tmp_path, GRPC_SERVER, *SERVICES, **{GRPC_SERVER: {"address": address}}) as parts,
        grpc.aio.insecure_channel(f"unix:{address}") as channel,
    ):
        remote = World(
            namespaces=RemoteNamespaces(channel),
            images=RemoteImages(channel),
            containers=RemoteContainers(channel),
            leases=RemoteLeases(channel),
            exchange=parts.exchange,
        )
        await check(remote)


# --- the stores of a daemon at the other end of a channel ------------------------------------------------------------


def headers() -> tuple[tuple[str, str], ...]:
    """What the ports take from the running call, as headers."""
    given = (("containerd-namespace", NAMESPACE.get()), ("containerd-lease", LEASE.get()))
    return tuple((key, value) for key, value in given if value)


async def call(method: Callable[..., Any], request: Message) -> Any:
    """Call, with the error that the port names."""
    with told():
        return await method(request, metadata=headers(), timeout=20)


@contextmanager
def told() -> Generator[None]:
    """Turn the status of a call into the error that the port names."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_status(error.code().value[0], error.details() or "") from error


def ns(stamp: Timestamp) -> int:
    when = to_ns(stamp)
    assert when is not None
    return when


class RemoteNamespaces:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = nrpc.NamespacesStub(channel)

    async def list(self) -> list[tuple[str, Mapping[str, str]]]:
        answer = await call(self._stub.List, npb.ListNamespacesRequest())
        return [(one.name, dict(one.labels)) for one in answer.namespaces]

    async def labels(self, name: str) -> Mapping[str, str]:
        answer = await call(self._stub.Get, npb.GetNamespaceRequest(name=name))
        assert answer.namespace.name == name
        return dict(answer.namespace.labels)

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        given = npb.Namespace(name=name, labels=labels)
        answer = await call(self._stub.Create, npb.CreateNamespaceRequest(namespace=given))
        assert answer.namespace == given

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> None:
        given = npb.Namespace(name=name, labels=labels)
        mask = FieldMask(paths=paths) if paths else None
        answer = await call(self._stub.Update, npb.UpdateNamespaceRequest(namespace=given, update_mask=mask))
        assert not answer.HasField("namespace")

    async def delete(self, name: str) -> None:
        await call(self._stub.Delete, npb.DeleteNamespaceRequest(name=name))


class RemoteImages:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = irpc.ImagesStub(channel)

    async def get(self, name: str) -> Image:
        return self._image((await call(self._stub.Get, ipb.GetImageRequest(name=name))).image)

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        answer = await call(self._stub.List, ipb.ListImagesRequest(filters=filters))
        return [self._image(one) for one in answer.images]

    async def create(self, image: Image, *, now: int | None = None) -> Image:
        epoch = None if now is None else timestamp(now)
        request = ipb.CreateImageRequest(image=self._message(image), source_date_epoch=epoch)
        return self._image((await call(self._stub.Create, request)).image)

    async def update(self, image: Image, paths: Sequence[str] = (), *, now: int | None = None) -> Image:
        epoch = None if now is None else timestamp(now)
        mask = FieldMask(paths=paths) if paths else None
        request = ipb.UpdateImageRequest(image=self._message(image), update_mask=mask, source_date_epoch=epoch)
        return self._image((await call(self._stub.Update, request)).image)

    async def delete(self, name: str, *, digest: str = "") -> None:
        target = DescriptorMessage(digest=digest) if digest else None
        await call(self._stub.Delete, ipb.DeleteImageRequest(name=name, target=target))

    def _image(self, message: ipb.Image) -> Image:
        at = message.target
        target = Descriptor(media_type=at.media_type, digest=at.digest, size=at.size, annotations=dict(at.annotations))
        return Image(
            name=message.name,
            target=target,
            labels=dict(message.labels),
            created_at=ns(message.created_at),
            updated_at=ns(message.updated_at),
        )

    def _message(self, image: Image) -> ipb.Image:
        at = image.target
        target = DescriptorMessage(media_type=at.media_type, digest=at.digest, size=at.size, annotations=at.annotations)
        # Clients send Go's zero times.
        return ipb.Image(
            name=image.name,
            target=target,
            labels=image.labels,
            created_at=timestamp(None),
            updated_at=timestamp(image.updated_at),
        )


class RemoteContainers:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = crpc.ContainersStub(channel)

    async def get(self, id: str) -> Container:  # noqa: A002 - the port says so
        return self._container((await call(self._stub.Get, cpb.GetContainerRequest(id=id))).container)

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        answer = await call(self._stub.List, cpb.ListContainersRequest(filters=filters))
        return [self._container(one) for one in answer.containers]

    async def stream(self, filters: Sequence[str] = ()) -> AsyncGenerator[Container]:
        running = self._stub.ListStream(cpb.ListContainersRequest(filters=filters), metadata=headers(), timeout=20)
        with told():
            try:
                async for message in running:
                    yield self._container(message.container)
            finally:
                running.cancel()

    async def create(self, container: Container) -> Container:
        request = cpb.CreateContainerRequest(container=self._message(container))
        return self._container((await call(self._stub.Create, request)).container)

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        mask = FieldMask(paths=paths) if paths else None
        request = cpb.UpdateContainerRequest(container=self._message(container), update_mask=mask)
        return self._container((await call(self._stub.Update, request)).container)

    async def delete(self, id: str) -> None:  # noqa: A002 - the port says so
        await call(self._stub.Delete, cpb.DeleteContainerRequest(id=id))

    def _container(self, message: cpb.Container) -> Container:
        runtime = message.runtime
        return Container(
            id=message.id,
            image=message.image,
            runtime=runtime.name,
            runtime_options=self._typed(runtime.options) if runtime.HasField("options") else None,
            spec=self._typed(message.spec) if message.HasField("spec") else None,
            snapshotter=message.snapshotter,
            snapshot_key=message.snapshot_key,
            sandbox=message.sandbox,
            labels=dict(message.labels),
            extensions={key: self._typed(value) for key, value in message.extensions.items()},
            created_at=ns(message.created_at),
            updated_at=ns(message.updated_at),
        )

    def _message(self, container: Container) -> cpb.Container:
        return cpb.Container(
            id=container.id,
            image=container.image,
            runtime=cpb.Container.Runtime(name=container.runtime, options=self._any(container.runtime_options)),
            spec=self._any(container.spec),
            snapshotter=container.snapshotter,
            snapshot_key=container.snapshot_key,
            sandbox=container.sandbox,
            labels=container.labels,
            extensions={key: self._any(value) for key, value in container.extensions.items()},
            created_at=timestamp(None),
            updated_at=timestamp(container.updated_at),
        )

    def _typed(self, message: AnyMessage) -> TypedBytes:
        return TypedBytes(message.type_url, message.value)

    def _any(self, given: TypedBytes | None) -> Any:
        return None if given is None else AnyMessage(type_url=given.type_url, value=given.value)


class RemoteLeases:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = lrpc.LeasesStub(channel)

    async def create(self, id: str, labels: Mapping[str, str]) -> Lease:  # noqa: A002 - the port says so
        answer = await call(self._stub.Create, lpb.CreateRequest(id=id, labels=labels))
        return self._lease(answer.lease)

    async def delete(self, id: str) -> None:  # noqa: A002 - the port says so
        await call(self._stub.Delete, lpb.DeleteRequest(id=id))

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        answer = await call(self._stub.List, lpb.ListRequest(filters=filters))
        return [self._lease(one) for one in answer.leases]

    async def add(self, lease: str, resource: Resource) -> None:
        given = lpb.Resource(type=resource.type, id=resource.id)
        await call(self._stub.AddResource, lpb.AddResourceRequest(id=lease, resource=given))

    async def remove(self, lease: str, resource: Resource) -> None:
        given = lpb.Resource(type=resource.type, id=resource.id)
        await call(self._stub.DeleteResource, lpb.DeleteResourceRequest(id=lease, resource=given))

    async def resources(self, lease: str) -> Sequence[Resource]:
        answer = await call(self._stub.ListResources, lpb.ListResourcesRequest(id=lease))
        return [Resource(one.type, one.id) for one in answer.resources]

    def _lease(self, message: lpb.Lease) -> Lease:
        return Lease(id=message.id, labels=dict(message.labels), created_at=ns(message.created_at))
