"""The streaming and transfer services on a socket: what clients send and see on their streams, and every error text."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from harness import GRPC_SERVER, fails, on_loop, running
from moored.api.services.images.v1 import images_pb2, images_pb2_grpc
from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from moored.api.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from moored.api.types.transfer import (
    container_pb2,
    imagestore_pb2,
    importexport_pb2,
    progress_pb2,
    registry_pb2,
)
from moored.api.types.transfer import streaming_pb2 as bytes_pb2
from unit.transfer.world import NS, PLUGINS, PREFIX, FakeRegistry, image, layout, registry, tar_of

SERVICES = tuple(f"io.containerd.grpc.v1.{name}" for name in ("streaming", "transfer", "images", "leases"))
HEADERS = (("containerd-namespace", NS),)
SCHEDULER = "io.containerd.gc.v1.scheduler"
TYPES = "containerd.types.transfer"
ImageStore = imagestore_pb2.ImageStore
Prefix = imagestore_pb2.ImageReference(name=PREFIX, is_prefix=True)


def packed(message: Message, prefix: str = "") -> AnyMessage:
    return AnyMessage(type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString())


@dataclass
class Client:
    """A client as Go's: streams that it names, and transfers that use them."""

    channel: grpc.aio.Channel
    news: list[progress_pb2.Progress] = field(default_factory=list)
    numbers: Any = field(default_factory=count)

    @asynccontextmanager
    async def stream(self, name: str = "", headers: Any = HEADERS) -> AsyncGenerator[tuple[str, Any]]:
        """Open a stream; its name, and the call."""
        name = name or f"stream-{next(self.numbers)}"
        call = streaming_pb2_grpc.StreamingStub(self.channel).Stream(metadata=headers)
        try:
            await call.write(packed(streaming_pb2.StreamInit(id=name)))
            answer = await call.read()
            assert answer.type_url == "google.protobuf.Empty"
            yield name, call
        finally:
            call.cancel()

    async def call(
        self, source: Message, destination: Message, headers: Any = HEADERS, prefix: str = "", **options: Any
    ) -> None:
        await transfer_pb2_grpc.TransferStub(self.channel).Transfer(
            transfer_pb2.TransferRequest(
                source=packed(source, prefix),
                destination=packed(destination, prefix),
                options=transfer_pb2.TransferOptions(**options),
            ),
            metadata=headers,
            timeout=30,
        )

    async def transfer(self, source: Message, destination: Message, **more: Any) -> None:
        """With a progress stream, whose messages are kept."""
        async with self.stream() as (name, call):
            reading = asyncio.create_task(self._read_news(call))
            try:
                await self.call(source, destination, progress_stream=name, **more)
                await reading
            finally:
                reading.cancel()
                await asyncio.wait([reading])

    async def _read_news(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            assert message.type_url == "containerd.types.transfer.Progress"
            self.news.append(progress_pb2.Progress.FromString(message.value))

    async def import_(self, data: bytes, destination: Message, **more: Any) -> None:
        async with self.stream() as (name, call):
            sending = asyncio.create_task(send(call, data))
            try:
                await self.transfer(importexport_pb2.ImageImportStream(stream=name), destination, **more)
            finally:
                sending.cancel()
                await asyncio.wait([sending])

    async def export(self, source: Message, **more: Any) -> bytes:
        async with self.stream() as (name, call):
            receiving = asyncio.create_task(receive(call))
            await self.transfer(source, importexport_pb2.ImageExportStream(stream=name, **more))
            return await receiving

    async def images(self) -> set[str]:
        stub = images_pb2_grpc.ImagesStub(self.channel)
        listed = await stub.List(images_pb2.ListImagesRequest(), metadata=HEADERS)
        return {one.name for one in listed.images}


async def send(call: Any, data: bytes) -> None:
    """Send bytes as Go's SendStream does: within the window, at most 32 KiB a message."""
    window = place = 0
    while place < len(data):
        while not window:
            message = await call.read()
            if message is grpc.aio.EOF:
                return
            window += bytes_pb2.WindowUpdate.FromString(message.value).update
        size = min(window, 32 << 10, len(data) - place)
        await call.write(packed(bytes_pb2.Data(data=data[place : place + size])))
        window, place = window - size, place + size
    await call.done_writing()


async def receive(call: Any) -> bytes:
    """Receive bytes as Go's ReceiveStream does."""
    got, window = bytearray(), 0
    while True:
        if window < 65536:
            # The other end may have sent all and be gone.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(packed(bytes_pb2.WindowUpdate(update=65536)))
            window += 65536
        message = await call.read()
        if message is grpc.aio.EOF:
            return bytes(got)
        data = bytes_pb2.Data.FromString(message.value).data
        assert len(data) <= 32 << 10
        got += data
        window -= len(data)
        assert window >= 0


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[Client]:
    address = f"{folder}/m.sock"
    plugins = (*PLUGINS, "io.containerd.streaming.v1.manager", SCHEDULER, *SERVICES)
    async with (
        running(folder, GRPC_SERVER, *plugins, configs={GRPC_SERVER: {"address": address}}),
        grpc.aio.insecure_channel(f"unix:{address}") as channel,
    ):
        yield Client(channel)


def repository(reference: str, **resolver: Any) -> registry_pb2.OCIRegistry:
    resolver = {"default_scheme": "http", **resolver}
    return registry_pb2.OCIRegistry(reference=reference, resolver=registry_pb2.RegistryResolver(**resolver))


# --- streams ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_name_of_a_stream_is_taken_until_its_consumer_closes_it(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        async with client.stream("s") as (_, call):
            with pytest.raises(grpc.aio.AioRpcError, match="already exists"):
                async with client.stream("s"):
                    pass
            async with client.stream("s", headers=(("containerd-namespace", "other"),)), client.stream("s", headers=()):
                pass
            await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="already exists"):
            async with client.stream("s"):
                pass
        assert await fails(client.call(ImageStore(name="x"), ImageStore(name="y"), progress_stream="s")) == (
            "NOT_FOUND",
            'image "x": not found',
        )
        async with client.stream("s"):
            pass


@on_loop
async def test_leased_stream_goes_with_its_lease(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        leases = leases_pb2_grpc.LeasesStub(client.channel)
        await leases.Create(leases_pb2.CreateRequest(id="l"), metadata=HEADERS)
        leased = (*HEADERS, ("containerd-lease", "l"))
        async with client.stream("s", headers=leased) as (_, call):
            await leases.Delete(leases_pb2.DeleteRequest(id="l"), metadata=HEADERS)
            assert await asyncio.wait_for(call.read(), 10) is grpc.aio.EOF
        async with client.stream("s"):
            pass


@on_loop
async def test_leased_stream_stays_while_a_label_names_it(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        leases = leases_pb2_grpc.LeasesStub(client.channel)
        images = images_pb2_grpc.ImagesStub(client.channel)
        named = images_pb2.Image(name="i", labels={"containerd.io/gc.ref.stream.x": "s"})
        named.target.digest, named.target.media_type, named.target.size = f"sha256:{'0' * 64}", "m", 1
        await images.Create(images_pb2.CreateImageRequest(image=named), metadata=HEADERS)
        await leases.Create(leases_pb2.CreateRequest(id="l"), metadata=HEADERS)
        leased = (*HEADERS, ("containerd-lease", "l"))
        async with client.stream("s", headers=leased) as (_, kept), client.stream("t", headers=leased) as (_, gone):
            await leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True), metadata=HEADERS)
            assert await asyncio.wait_for(gone.read(), 10) is grpc.aio.EOF
            reading = asyncio.ensure_future(kept.read())
            await asyncio.wait([reading], timeout=0.2)
            assert not reading.done()
            await images.Delete(images_pb2.DeleteImageRequest(name="i", sync=True), metadata=HEADERS)
            assert await asyncio.wait_for(reading, 10) is grpc.aio.EOF


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (packed(streaming_pb2.StreamInit(id="s"), "type.googleapis.com/"), None),
        (packed(bytes_pb2.Data()), ("UNKNOWN", "can't unmarshal type")),
        (
            AnyMessage(type_url="containerd.services.streaming.v1.StreamInit", value=b"\xff"),
            ("INVALID_ARGUMENT", "read"),
        ),
    ],
)
@on_loop
async def test_first_message_must_name_the_stream(tmp_path: Path, message: AnyMessage, error: Any) -> None:
    async with served(tmp_path) as client:
        call = streaming_pb2_grpc.StreamingStub(client.channel).Stream(metadata=HEADERS)
        await call.write(message)
        if error is None:
            assert (await call.read()).type_url == "google.protobuf.Empty"
            call.cancel()
            return
        code, text = await fails(call.read())
    assert code == error[0]
    assert error[1] in text


@on_loop
async def test_message_that_is_too_large_ends_the_stream(tmp_path: Path) -> None:
    async with served(tmp_path) as client, client.stream() as (_, call):
        await call.write(packed(bytes_pb2.Data(data=bytes(1 << 20))))

        code, text = await fails(call.read())
    assert code == "RESOURCE_EXHAUSTED"
    assert "at most 131072" in text


# --- transfers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
@on_loop
async def test_archive_goes_in_and_out_over_streams(tmp_path: Path, prefix: str) -> None:
    made = image(tar_of({"file": bytes(range(256)) * 2000}))
    async with served(tmp_path) as client:
        await client.import_(layout(made), ImageStore(extra_references=[Prefix]), prefix=prefix)
        assert [(one.event, one.name) for one in client.news] == [
            ("Importing", ""),
            ("saved", f"{PREFIX}:latest"),
            ("Completed import", ""),
        ]
        assert client.news[1].desc.digest == made.target["digest"]
        client.news.clear()
        archive = await client.export(ImageStore(name=f"{PREFIX}:latest"))
        assert [one.event for one in client.news] == ["Exporting", "Completed export"]
        await client.import_(archive, ImageStore(name="again"))

        assert await client.images() == {f"{PREFIX}:latest", "again"}


@on_loop
async def test_pull_and_push_tell_of_their_progress(tmp_path: Path) -> None:
    made = image()
    async with registry() as remote, served(tmp_path) as client:
        name = remote.put(made)
        await client.transfer(repository(name), ImageStore(name=name))
        pulled, client.news = client.news, []
        other = name.replace("a/b", "c/d")
        await client.transfer(ImageStore(name=name), repository(other))
        pushed = client.news

        assert remote.tags["c/d:1"][1] == made.target["digest"]
    assert [one.event for one in pulled][:3] == [
        f"Resolving from OCI Registry ({name})",
        f"Pulling from OCI Registry ({name})",
        "fetching image content",
    ]
    assert pulled[-1].event == f"Completed pull from OCI Registry ({name})"
    layer = next(one for one in pulled if one.event == "complete" and one.name.startswith("layer-"))
    assert (layer.progress, layer.total, list(layer.parents)) == (
        made.layers[0]["size"],
        made.layers[0]["size"],
        [f"manifest-{made.target['digest']}"],
    )
    assert [one.event for one in pushed][:2] == [f"Pushing to OCI Registry ({other})", "pushing content"]
    assert [one.event for one in pushed][-2:] == ["pushed content", f"Completed push to OCI Registry ({other})"]


@on_loop
async def test_blobs_are_mounted_from_the_repository_that_they_came_from(tmp_path: Path) -> None:
    made = image()
    async with registry() as remote, served(tmp_path) as client:
        name = remote.put(made, "lib/base:1")
        await client.transfer(repository(name), ImageStore(name=name))

        async def empty(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=404) if request.method == "HEAD" else None

        remote.fault = empty
        await client.transfer(ImageStore(name=name), repository(name.replace("lib/base", "lib/mine")))

    posts = [asked for asked in remote.asked if asked.startswith("POST")]
    assert len(posts) == 2
    assert all("from=lib/base" in asked or "from=lib%2Fbase" in asked for asked in posts)
    assert not [asked for asked in remote.asked if asked.startswith("PUT") and "/uploads/" in asked]
    assert [asked for asked in remote.asked if asked.startswith("PUT")][-1].endswith("/lib/mine/manifests/1")


@on_loop
async def test_client_is_asked_who_it_is_over_its_stream(tmp_path: Path) -> None:
    made = image()
    wanted = "Basic " + base64.b64encode(b"anna:secret").decode()

    async def guard(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == wanted:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with registry() as remote, served(tmp_path) as client, client.stream() as (stream, call):
        name = remote.put(made)
        remote.fault = guard
        answering = asyncio.create_task(
            answer(call, registry_pb2.AuthResponse(authType=1, username="anna", secret="secret"))
        )
        await client.transfer(repository(name, auth_stream=stream), ImageStore(name=name))
        asked = await answering

    assert asked.host == remote.address
    assert asked.reference == name


async def answer(call: Any, response: registry_pb2.AuthResponse) -> registry_pb2.AuthRequest:
    message = await call.read()
    await call.write(packed(response))
    return registry_pb2.AuthRequest.FromString(message.value)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (registry_pb2.DEBUG, True),
        (registry_pb2.BOTH, True),
        (registry_pb2.TRACE, False),
        (registry_pb2.DISABLED, False),
    ],
)
@on_loop
async def test_the_heads_of_requests_are_told_on_the_stream_for_them(
    tmp_path: Path, wanted: registry_pb2.HTTPDebug, told: bool
) -> None:
    heads = bytearray()

    async def read(call: Any) -> None:
        await call.write(packed(bytes_pb2.WindowUpdate(update=1 << 20)))
        while (message := await call.read()) is not grpc.aio.EOF:
            heads.extend(bytes_pb2.Data.FromString(message.value).data)

    async with registry() as remote, served(tmp_path) as client, client.stream() as (stream, call):
        name = remote.put(image())
        reading = asyncio.create_task(read(call))
        await client.call(repository(name, logs_stream=stream, http_debug=wanted), ImageStore(name=name))
        await asyncio.wait_for(reading, 20)

    assert (b"HEAD /v2/" in heads) is told
    assert (b"HTTP/1.1 200 OK\r\n" in heads) is told


@on_loop
async def test_a_client_that_does_not_read_what_it_wanted_to_be_told_gets_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moored.plugins.transfer.registries.DUMP_SECONDS", 0.05)
    async with registry() as remote, served(tmp_path) as client, client.stream() as (stream, _):
        name = remote.put(image())
        source = repository(name, logs_stream=stream, http_debug=registry_pb2.DEBUG)
        await client.call(source, ImageStore(name=name))

        assert (
            await images_pb2_grpc.ImagesStub(client.channel).List(images_pb2.ListImagesRequest(), metadata=HEADERS)
        ).images


@on_loop
async def test_client_that_has_no_credentials_is_refused(tmp_path: Path) -> None:
    async def guard(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    async with registry() as remote, served(tmp_path) as client, client.stream() as (stream, call):
        name = remote.put(image())
        remote.fault = guard
        answering = asyncio.create_task(answer(call, registry_pb2.AuthResponse()))
        code, text = await fails(client.call(repository(name, auth_stream=stream), ImageStore(name=name)))
        await answering

    assert code == "PERMISSION_DENIED"
    assert "no basic auth credentials" in text


ENDS: dict[str, tuple[Message, Message, str, str]] = {
    "no such image": (ImageStore(name="x"), ImageStore(name="y"), "NOT_FOUND", 'image "x": not found'),
    "registry to registry": (
        repository("h/a:1"),
        repository("h/a:1"),
        "UNIMPLEMENTED",
        f"method Transfer not implemented for {TYPES}.OCIRegistry to {TYPES}.OCIRegistry",
    ),
    "container": (
        container_pb2.ContainerPath(container_id="c"),
        ImageStore(name="y"),
        "UNIMPLEMENTED",
        f"method Transfer not implemented for {TYPES}.ContainerPath to {TYPES}.ImageStore",
    ),
    "no such stream": (importexport_pb2.ImageImportStream(stream="s"), ImageStore(name="y"), "NOT_FOUND", "not found"),
    "no such auth stream": (repository("h/a:1", auth_stream="s"), ImageStore(name="y"), "NOT_FOUND", "not found"),
    "no such export stream": (ImageStore(name="y"), importexport_pb2.ImageExportStream(), "NOT_FOUND", "not found"),
}


@pytest.mark.parametrize("case", ENDS)
@on_loop
async def test_ends_that_cannot_be_are_told(tmp_path: Path, case: str) -> None:
    source, destination, code, text = ENDS[case]
    async with served(tmp_path) as client:
        assert await fails(client.call(source, destination)) == (code, text)


@on_loop
async def test_missing_ends_progress_stream_and_namespace_are_told(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        stub = transfer_pb2_grpc.TransferStub(client.channel)
        code, _ = await fails(stub.Transfer(transfer_pb2.TransferRequest(), metadata=HEADERS))
        no_stream = await fails(client.call(ImageStore(name="x"), ImageStore(name="y"), progress_stream="none"))
        no_namespace = await fails(client.call(ImageStore(name="x"), ImageStore(name="y"), headers=()))

    assert code == "INVALID_ARGUMENT"
    assert no_stream == ("NOT_FOUND", "not found")
    assert no_namespace[0] == "FAILED_PRECONDITION"


@on_loop
async def test_transfer_ends_with_its_client_and_leaves_nothing(tmp_path: Path) -> None:
    made = image()
    began = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if made.layers[0]["digest"] in request.path:
            began.set()
            await asyncio.Event().wait()
        return None

    async with registry() as remote, served(tmp_path) as client:
        name = remote.put(made)
        remote.fault = hang
        pulling = asyncio.create_task(client.call(repository(name), ImageStore(name=name)))
        await began.wait()
        pulling.cancel()
        await asyncio.wait([pulling])

        await emptied(client)
        assert await client.images() == set()


async def emptied(client: Client) -> None:
    stub = leases_pb2_grpc.LeasesStub(client.channel)
    async with asyncio.timeout(10):
        while (await stub.List(leases_pb2.ListRequest(), metadata=HEADERS)).leases:
            await asyncio.sleep(0.01)


@on_loop
async def test_client_that_reads_no_news_does_not_hold_a_transfer_up(tmp_path: Path) -> None:
    made = image(*(tar_of({f"file{number}": b"x"}) for number in range(100)))
    async with registry() as remote, served(tmp_path) as client, client.stream() as (stream, _):
        name = remote.put(made)
        await client.call(repository(name), ImageStore(name=name), progress_stream=stream)

        assert await client.images() == {name}


@on_loop
async def test_client_that_leaves_in_the_middle_of_an_import_gets_nothing_stored(tmp_path: Path) -> None:
    data = layout(image(tar_of({"file": bytes(1 << 20)})))
    async with served(tmp_path) as client:
        async with client.stream() as (name, call):
            importing = asyncio.create_task(
                client.call(importexport_pb2.ImageImportStream(stream=name), ImageStore(name="x"))
            )
            await call.read()
            await call.write(packed(bytes_pb2.Data(data=data[:1000])))
            call.cancel()
            code, text = await fails(importing)

        assert (code, "unexpected EOF" in text) == ("UNKNOWN", True)
        assert await client.images() == set()


def test_registry_of_the_tests_is_told_its_address() -> None:
    assert FakeRegistry(address="h:1").put(image()).startswith("h:1/")
