"""A daemon that pulls from hostile registries (rows 107 to 118): what it tells, what stays, what config forbids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from daemons import Daemon
from fault.registry_pulls import MIB, blob, bomb, offset, streamed
from harness import on_loop
from hostile_registry import Handler, HostileRegistry, manifest_response, speaking
from moored.api.services.content.v1 import content_pb2, content_pb2_grpc
from moored.api.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from moored.api.types.transfer.imagestore_pb2 import ImageStore
from moored.api.types.transfer.registry_pb2 import OCIRegistry, RegistryResolver
from registries import Image

TRANSFER = 'version = 4\n[plugins."io.containerd.transfer.v1.local"]\n'
REGISTRIES = 'version = 4\n[plugins."io.containerd.transfer.v1.local".registries]\n'
METADATA = (("containerd-namespace", "ns"),)
SECRET = "c2VjcmV0LWhlYWRlcg"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    folder = tmp_path_factory.mktemp("d")
    (folder / "hosts").mkdir()
    config = f'{TRANSFER}config_path = "{folder}/hosts"\n[debug]\nlevel = "debug"\n'
    with Daemon(folder, config) as running:
        yield running


def packed(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


@asynccontextmanager
async def connected(daemon: Daemon) -> AsyncGenerator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        yield channel


async def pull(daemon: Daemon, name: str, **resolver: Any) -> tuple[str, str]:
    """Pull an image over plain http; code and text of the outcome."""
    source = OCIRegistry(reference=name, resolver=RegistryResolver(default_scheme="http", **resolver))
    request = transfer_pb2.TransferRequest(source=packed(source), destination=packed(ImageStore(name=name)))
    async with connected(daemon) as channel:
        try:
            await transfer_pb2_grpc.TransferStub(channel).Transfer(request, metadata=METADATA, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


async def stored(daemon: Daemon, image: Image) -> bytes:
    """The layer's bytes as the daemon has them."""
    async with connected(daemon) as channel:
        request = content_pb2.ReadContentRequest(digest=image.layer_entry.digest)
        found = content_pb2_grpc.ContentStub(channel).Read(request, metadata=METADATA, timeout=30)
        return b"".join([answer.data async for answer in found])


async def ingests(daemon: Daemon) -> list[str]:
    async with connected(daemon) as channel:
        request = content_pb2.ListStatusesRequest()
        found = await content_pb2_grpc.ContentStub(channel).ListStatuses(request, metadata=METADATA, timeout=30)
        return [status.ref for status in found.statuses]


def serving(image: Image, layer: Handler) -> Handler:
    """A registry that behaves but for the layer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "/manifests/" in request.path:
            return manifest_response(image.entry, image.manifest)
        if request.path.endswith(image.config_entry.digest):
            return blob(image.config)
        return await layer(request)

    return answer


class Sometimes:
    """Gives a wrong layer until it is told to give the right one."""

    def __init__(self, image: Image, wrong: Handler) -> None:
        self.image = image
        self.wrong = wrong
        self.good = False

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if not self.good:
            return await self.wrong(request)
        start, data = offset(request), self.image.layer
        if not start:
            return blob(data)
        return blob(data[start:], 206, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")


async def longer(request: web.Request) -> web.StreamResponse:
    return await streamed(request, bytes(4 * MIB))


async def other(_: web.Request) -> web.StreamResponse:
    return blob(bytes(300_000))


async def shorter(request: web.Request) -> web.StreamResponse:
    if offset(request):
        return web.Response(status=500)
    return await streamed(request, bytes(100_000), say=300_000)


async def inflating(_: web.Request) -> web.StreamResponse:
    return blob(bomb(256 * MIB), Content_Encoding="gzip")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (longer, "FAILED_PRECONDITION"),
        (other, "FAILED_PRECONDITION"),
        (shorter, "UNAVAILABLE"),
        (inflating, "FAILED_PRECONDITION"),
    ],
)
@on_loop
async def test_109_wrong_bytes_are_not_in_the_way_of_the_next_pull(daemon: Daemon, wrong: Handler, code: str) -> None:
    image = Image.of(300_000)
    layer = Sometimes(image, wrong)
    async with HostileRegistry(serving(image, layer)) as server:
        name = f"{server.place}/a:one"
        assert (await pull(daemon, name))[0] == code
        if code == "FAILED_PRECONDITION":
            assert not [ref for ref in await ingests(daemon) if image.layer_entry.digest in ref]
        layer.good = True
        if wrong is not shorter:
            assert await pull(daemon, name) == ("OK", "")
            assert await stored(daemon, image) == image.layer


@on_loop
async def test_107_a_pull_goes_on_where_an_earlier_one_broke_off(daemon: Daemon) -> None:
    image = Image.of(300_000)

    async def part(request: web.Request) -> web.StreamResponse:
        if offset(request):
            return web.Response(status=502)
        return await streamed(request, image.layer[:200_000], say=300_000)

    layer = Sometimes(image, part)
    async with HostileRegistry(serving(image, layer)) as server:
        assert (await pull(daemon, f"{server.place}/a:one"))[0] == "UNAVAILABLE"
        layer.good = True
        before = len(server.asked)
        assert await pull(daemon, f"{server.place}/a:one") == ("OK", "")
    assert await stored(daemon, image) == image.layer
    ranges = [one.headers.get("Range") for one in server.asked[before:] if image.layer_entry.digest in one.path]
    assert ranges == ["bytes=200000-299999"]


@on_loop
async def test_116_the_config_keeps_from_private_addresses_and_token_servers(tmp_path: Path) -> None:
    image = Image.of(1000)

    async def inside(_: web.Request) -> web.StreamResponse:
        return blob(image.layer)

    async def redirecting(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"{internal.url}/x"})

    async def asking(_: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{internal.url}/t"'})

    policy = 'token_hosts = ["auth.test"]\ndeny_private = true\n'
    async with (
        HostileRegistry(inside) as internal,
        HostileRegistry(serving(image, redirecting)) as one,
        HostileRegistry(asking) as two,
    ):
        with Daemon(tmp_path, REGISTRIES + policy) as guarded:
            redirected = await pull(guarded, f"{one.place}/a:one")
            asked = await pull(guarded, f"{two.place}/a:one")
    assert redirected[0] == "PERMISSION_DENIED"
    assert "is a private address, where servers may not send to" in redirected[1]
    assert asked[0] == "PERMISSION_DENIED"
    assert f"names {internal.place} to get tokens from, which is not allowed" in asked[1]
    assert internal.asked == []


@on_loop
async def test_118_the_config_says_what_is_waited_for(tmp_path: Path) -> None:
    async def never(_head: bytes, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    limits = 'header_timeout = "100ms"\ndial_timeout = "100ms"\n'
    async with speaking(never) as server:
        with Daemon(tmp_path, REGISTRIES + limits) as hasty:
            code, said = await pull(hasty, f"{server.place}/a:one")
    assert code == "DEADLINE_EXCEEDED"
    assert "did not answer HEAD in time" in said


def test_a_network_that_is_none_is_told(tmp_path: Path) -> None:
    with Daemon(tmp_path, REGISTRIES + 'private_networks = ["10.1.0.0/99"]\n') as running:
        plugin = running.plugins()["io.containerd.transfer.v1.local"]
    assert "'private_networks' has '10.1.0.0/99', wanted is a network like '10.1.0.0/16'" in plugin.reason


@on_loop
async def test_hosts_files_are_read_for_each_pull(daemon: Daemon) -> None:
    image = Image.of(1000)

    async def layer(_: web.Request) -> web.StreamResponse:
        return blob(image.layer)

    folder = daemon.folder / "hosts" / "reg.test"
    folder.mkdir()
    async with HostileRegistry(serving(image, layer)) as mirror:
        (folder / "hosts.toml").write_text(f'server = "http://{mirror.place}"\n[header]\nx-mirror = "1"')
        assert await pull(daemon, "reg.test/a:one") == ("OK", "")
        assert {(one.headers.get("x-mirror"), one.path.partition("?")[2]) for one in mirror.asked} == {
            ("1", "ns=reg.test")
        }
        (folder / "hosts.toml").write_text(f'server = "http://{mirror.place}/other"')
        await pull(daemon, "reg.test/a:one")
        assert mirror.asked[-1].path.startswith("/other/v2/a/manifests/one")
        (folder / "hosts.toml").write_text(f'server = "http://{mirror.place}"\ncapabilities = ["fly"]')
        assert (await pull(daemon, "reg.test/a:one"))[0] == "UNAVAILABLE"
    assert f"'{folder}/hosts.toml': capability 'fly' must be one of" in daemon.text()


@on_loop
async def test_secrets_of_clients_are_in_no_log_and_no_error(daemon: Daemon) -> None:
    async def refusing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=403, body=b"no")

    async with HostileRegistry(refusing) as server:
        _, said = await pull(daemon, f"{server.place}/a:one", headers={"Authorization": f"Basic {SECRET}"})
    assert server.asked[0].secret == f"Basic {SECRET}"
    assert SECRET not in said
    assert SECRET not in daemon.text()


def loaded(daemon: Daemon) -> bool:
    """Whether the daemon has imported the HTTP client."""
    assert daemon.process is not None
    return "aiohttp" in Path(f"/proc/{daemon.process.pid}/maps").read_text()


@on_loop
async def test_a_daemon_that_has_not_pulled_has_no_http_client(tmp_path: Path) -> None:
    with Daemon(tmp_path, TRANSFER) as idle:
        assert not loaded(idle)
        await pull(idle, "127.0.0.1:1/a:one")
        assert loaded(idle)
