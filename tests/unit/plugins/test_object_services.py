"""What the gRPC faces of images, containers, leases and namespaces do beyond their ports: texts, sync, messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from harness import GRPC_SERVER, fails, on_loop, plug
from moored.api.convert import GO_ZERO_SECONDS
from moored.api.services.containers.v1 import containers_pb2 as cpb
from moored.api.services.containers.v1 import containers_pb2_grpc as crpc
from moored.api.services.images.v1 import images_pb2 as ipb
from moored.api.services.images.v1 import images_pb2_grpc as irpc
from moored.api.services.leases.v1 import leases_pb2 as lpb
from moored.api.services.leases.v1 import leases_pb2_grpc as lrpc
from moored.api.services.namespaces.v1 import namespace_pb2 as npb
from moored.api.services.namespaces.v1 import namespace_pb2_grpc as nrpc
from moored.api.types.descriptor_pb2 import Descriptor
from moored.kernel.conformance.objects import DIGEST, TOO_LONG, TOO_LONG_TEXT
from moored.kernel.errors import Unknown
from moored.kernel.ports.objects import GC, Collection
from unit.metadata.objects import SERVICES, Opened, opened

HEADERS = (("containerd-namespace", "one"),)


@dataclass
class Collector:
    """A scheduler that notes what was there when it was asked."""

    error: Exception | None = None
    parts: list[Opened] = field(default_factory=list)
    seen: list[tuple[Sequence[str], Sequence[str]]] = field(default_factory=list)

    async def collect_now(self) -> Collection:
        objects = self.parts[0].objects
        images, leases = await objects.images.list(), await objects.leases.list()
        self.seen.append(([one.name for one in images], [one.id for one in leases]))
        if self.error is not None:
            raise self.error
        return Collection(pause_seconds=0, seconds=0, removed={})


@dataclass
class Stubs:
    """Clients of the four services."""

    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.images: Any = irpc.ImagesStub(self.channel)
        self.containers: Any = crpc.ContainersStub(self.channel)
        self.leases: Any = lrpc.LeasesStub(self.channel)
        self.namespaces: Any = nrpc.NamespacesStub(self.channel)


@asynccontextmanager
async def served(folder: Path, collector: Collector | None = None) -> AsyncGenerator[Stubs]:
    address = str(folder / "m.sock")
    gc = () if collector is None else (plug(GC, "scheduler", collector),)
    async with (
        opened(folder, GRPC_SERVER, *SERVICES, *gc, **{GRPC_SERVER: {"address": address}}) as parts,
        grpc.aio.insecure_channel(f"unix:{address}") as channel,
    ):
        if collector is not None:
            collector.parts.append(parts)
        yield Stubs(channel)


def image(name: str = "i") -> ipb.Image:
    return ipb.Image(name=name, target=Descriptor(digest=DIGEST, size=1, media_type="m"))


@on_loop
async def test_missing_messages_are_told(tmp_path: Path) -> None:
    async with served(tmp_path) as stubs:
        lease = lpb.CreateRequest(id="l")
        await stubs.leases.Create(lease, metadata=HEADERS)
        calls = {
            "image": [
                stubs.images.Create(ipb.CreateImageRequest(), metadata=HEADERS),
                stubs.images.Update(ipb.UpdateImageRequest(), metadata=HEADERS),
            ],
            "container": [
                stubs.containers.Create(cpb.CreateContainerRequest(), metadata=HEADERS),
                stubs.containers.Update(cpb.UpdateContainerRequest(), metadata=HEADERS),
            ],
            "namespace": [
                stubs.namespaces.Create(npb.CreateNamespaceRequest()),
                stubs.namespaces.Update(npb.UpdateNamespaceRequest()),
            ],
            "resource": [
                stubs.leases.AddResource(lpb.AddResourceRequest(id="l"), metadata=HEADERS),
                stubs.leases.DeleteResource(lpb.DeleteResourceRequest(id="l"), metadata=HEADERS),
            ],
        }
        for what, started in calls.items():
            for one in started:
                assert await fails(one) == ("INVALID_ARGUMENT", f"request has no {what}: invalid argument")


@on_loop
async def test_missing_names_are_told_without_suffix_before_the_namespace(tmp_path: Path) -> None:
    async with served(tmp_path) as stubs:
        wanted = ("INVALID_ARGUMENT", "Image.Name required")
        assert await fails(stubs.images.Create(ipb.CreateImageRequest(image=image("")))) == wanted
        assert await fails(stubs.images.Update(ipb.UpdateImageRequest(image=image("")))) == wanted
        update = cpb.UpdateContainerRequest(container=cpb.Container())
        assert await fails(stubs.containers.Update(update)) == ("INVALID_ARGUMENT", "Container.ID required")


@on_loop
async def test_bad_filter_has_its_suffix_twice(tmp_path: Path) -> None:
    bad = ["name=x"]
    text = 'filters: parse error: [name >|=|< x]: unsupported operator "=": invalid argument: invalid argument'
    async with served(tmp_path) as stubs:
        calls = (
            stubs.images.List(ipb.ListImagesRequest(filters=bad), metadata=HEADERS),
            stubs.containers.List(cpb.ListContainersRequest(filters=bad), metadata=HEADERS),
            stubs.containers.ListStream(cpb.ListContainersRequest(filters=bad), metadata=HEADERS).read(),
            stubs.leases.List(lpb.ListRequest(filters=bad), metadata=HEADERS),
        )
        for call in calls:
            assert await fails(call) == ("INVALID_ARGUMENT", text)


@on_loop
async def test_calls_without_namespace_fail_but_for_namespaces(tmp_path: Path) -> None:
    async with served(tmp_path) as stubs:
        calls = (
            stubs.images.List(ipb.ListImagesRequest()),
            stubs.containers.List(cpb.ListContainersRequest()),
            stubs.containers.ListStream(cpb.ListContainersRequest()).read(),
            stubs.leases.List(lpb.ListRequest()),
        )
        for call in calls:
            assert await fails(call) == ("FAILED_PRECONDITION", "namespace is required: failed precondition")
        assert not (await stubs.namespaces.List(npb.ListNamespacesRequest(filter="name==a"))).namespaces


@on_loop
async def test_namespace_update_tells_long_labels_as_unknown(tmp_path: Path) -> None:
    async with served(tmp_path) as stubs:
        given = npb.Namespace(name="one", labels=TOO_LONG)
        text = f"namespace.Labels: {TOO_LONG_TEXT}: invalid argument"
        create = stubs.namespaces.Create(npb.CreateNamespaceRequest(namespace=given))
        assert await fails(create) == ("INVALID_ARGUMENT", text)
        update = stubs.namespaces.Update(npb.UpdateNamespaceRequest(namespace=given))
        assert await fails(update) == ("UNKNOWN", text)
        given = npb.Namespace(name="one")
        request = npb.UpdateNamespaceRequest(namespace=given, update_mask=FieldMask(paths=["labels"]))
        wanted = ("INVALID_ARGUMENT", 'cannot update "labels" field')
        assert await fails(stubs.namespaces.Update(request)) == wanted


@on_loop
async def test_source_date_epoch_may_be_any_time(tmp_path: Path) -> None:
    async with served(tmp_path) as stubs:
        for seconds in (0, 1, GO_ZERO_SECONDS):
            epoch = Timestamp(seconds=seconds)
            request = ipb.CreateImageRequest(image=image(f"i{seconds}"), source_date_epoch=epoch)
            made = (await stubs.images.Create(request, metadata=HEADERS)).image
            assert (made.created_at, made.updated_at) == (epoch, epoch)
            found = await stubs.images.Get(ipb.GetImageRequest(name=f"i{seconds}"), metadata=HEADERS)
            assert found.image == made
        request = ipb.CreateImageRequest(image=image("bad"), source_date_epoch=Timestamp(nanos=-1))
        assert (await fails(stubs.images.Create(request, metadata=HEADERS)))[0] == "INVALID_ARGUMENT"


@on_loop
async def test_sync_deletes_wait_for_a_collection_after_them(tmp_path: Path) -> None:
    collector = Collector()
    async with served(tmp_path, collector) as stubs:
        await stubs.images.Create(ipb.CreateImageRequest(image=image("a")), metadata=HEADERS)
        await stubs.images.Create(ipb.CreateImageRequest(image=image("b")), metadata=HEADERS)
        await stubs.leases.Create(lpb.CreateRequest(id="l"), metadata=HEADERS)
        await stubs.images.Delete(ipb.DeleteImageRequest(name="a"), metadata=HEADERS)
        assert collector.seen == []
        await stubs.images.Delete(ipb.DeleteImageRequest(name="b", sync=True), metadata=HEADERS)
        await stubs.leases.Delete(lpb.DeleteRequest(id="l", sync=True), metadata=HEADERS)
        assert collector.seen == [([], ["l"]), ([], [])]
        call = stubs.images.Delete(ipb.DeleteImageRequest(name="b", sync=True), metadata=HEADERS)
        assert await fails(call) == ("NOT_FOUND", 'image "b": not found')
        assert len(collector.seen) == 2
        await stubs.leases.Create(lpb.CreateRequest(id="m"), metadata=HEADERS)
        collector.error = Unknown("gc failed")
        call = stubs.leases.Delete(lpb.DeleteRequest(id="m", sync=True), metadata=HEADERS)
        assert await fails(call) == ("UNKNOWN", "gc failed")


@on_loop
async def test_sync_delete_without_collector_is_refused_and_deletes_nothing(tmp_path: Path) -> None:
    text = "no garbage collector is running, only deletes without sync work: failed precondition"
    async with served(tmp_path) as stubs:
        await stubs.images.Create(ipb.CreateImageRequest(image=image()), metadata=HEADERS)
        await stubs.leases.Create(lpb.CreateRequest(id="l"), metadata=HEADERS)
        calls = (
            stubs.images.Delete(ipb.DeleteImageRequest(name="i", sync=True), metadata=HEADERS),
            stubs.leases.Delete(lpb.DeleteRequest(id="l", sync=True), metadata=HEADERS),
        )
        for call in calls:
            assert await fails(call) == ("FAILED_PRECONDITION", text)
        assert len((await stubs.images.List(ipb.ListImagesRequest(), metadata=HEADERS)).images) == 1
        assert len((await stubs.leases.List(lpb.ListRequest(), metadata=HEADERS)).leases) == 1


@on_loop
async def test_a_list_too_long_for_one_message_can_be_streamed(tmp_path: Path) -> None:
    async with served(tmp_path) as stubs:
        for number in range(6):
            given = cpb.Container(id=f"c{number}", runtime=cpb.Container.Runtime(name="r"))
            given.spec.value = b"x" * (3 << 20)
            await stubs.containers.Create(cpb.CreateContainerRequest(container=given), metadata=HEADERS)
        code, text = await fails(stubs.containers.List(cpb.ListContainersRequest(), metadata=HEADERS))
        assert code == "RESOURCE_EXHAUSTED"
        assert text.startswith("grpc: trying to send message larger than max (")
        stream = stubs.containers.ListStream(cpb.ListContainersRequest(), metadata=HEADERS)
        assert [message.container.id async for message in stream] == [f"c{number}" for number in range(6)]
