"""One shim's connection: what counts as its end, and what does not."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from harness import on_loop
from moored.api.runtime.task.v3 import shim_pb2 as api
from moored.api.ttrpc.server import Kind as CallKind
from moored.api.ttrpc.server import Method, Server, Services
from moored.kernel.errors import DeadlineExceeded, InvalidArgument, MooredError, Unavailable
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import Exit
from moored.plugins.runtime.manager.bundle import Bundle, Folders
from moored.plugins.runtime.manager.connection import connect
from moored.plugins.runtime.manager.shim import Deadlines, ManagedShim

SERVICE = "containerd.task.v3.Task"


class Counted:
    """A Kind that only counts its cleanups."""

    reports_exits = False

    def __init__(self) -> None:
        self.cleanups = 0

    def prepare(self, bundle: Bundle, spec: Mapping[str, Any] | None) -> None:
        pass

    async def start(self, bundle: Bundle, options: TypedBytes | None, *, seconds: float) -> Endpoint:
        raise NotImplementedError

    async def cleanup(self, bundle: Bundle, *, clean: bool, seconds: float) -> Exit | None:
        self.cleanups += 1
        return Exit(pid=1, status=137, exited_at=1)


@pytest.fixture
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="mb") as path:
        yield Path(path)


@asynccontextmanager
async def loaded(folder: Path) -> AsyncGenerator[tuple[ManagedShim, Counted, asyncio.Event]]:
    """A shim that is taken up at `folder/s`, its kind, and the event of its end."""
    bundle = Bundle(Folders(folder / "state", folder / "root"), "ns", "c")
    bundle.make(b"{}")
    kind, over = Counted(), asyncio.Event()

    async def gone(_shim: ManagedShim, _exit: Exit | None) -> None:
        over.set()

    shim = ManagedShim(bundle, kind, Deadlines(), structlog.get_logger(), asyncio.Semaphore(1))
    shim.load(Endpoint(f"unix://{folder}/s", 3), gone)
    try:
        yield shim, kind, over
    finally:
        await shim.leave()


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[Server]:
    """A shim's server that answers Connect."""
    services = Services()

    async def answer(_request: Any, _context: Any) -> Any:
        return api.ConnectResponse(shim_pid=7)

    services.register(SERVICE, {"Connect": Method(CallKind.UNARY, api.ConnectRequest, api.ConnectResponse, answer)})
    server = Server(services)
    sock = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        (folder / "s").unlink()
    sock.bind(f"{folder}/s")
    await server.serve(sock)
    try:
        yield server
    finally:
        await server.stop(0)


async def asked(shim: ManagedShim) -> int:
    """The pid that the shim tells."""
    return api.ConnectResponse.FromString(await shim.call(SERVICE, "Connect", b"", seconds=5)).shim_pid


def test_shim_that_nobody_serves_is_gone(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        async with loaded(folder) as (shim, kind, over):
            async with asyncio.timeout(5):
                await over.wait()
            assert kind.cleanups == 1
            assert not shim.bundle.exists()
            with pytest.raises(Unavailable, match="ttrpc: closed"):
                await asked(shim)

    main()


def test_shim_with_a_full_queue_is_waited_for(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/s")
            listener.listen(0)
            waiting = []
            with suppress(BlockingIOError):
                while True:
                    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                    waiting.append(one)
                    one.connect(f"{folder}/s")
            async with loaded(folder) as (shim, kind, over):
                with pytest.raises(DeadlineExceeded, match=r"shim of 'c' did not answer Connect within 0.2 seconds"):
                    await shim.call(SERVICE, "Connect", b"", seconds=0.2)
                assert not over.is_set()
                assert kind.cleanups == 0
                for one in waiting:
                    one.close()
                for _ in waiting[:-1]:
                    listener.accept()[0].close()
                async with asyncio.timeout(10):
                    assert await shim.settled()

    main()


def test_shim_that_closes_every_connection_is_kept(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        met = asyncio.Event()
        count = 0

        async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            if count == 5:
                met.set()
            writer.close()

        async with (
            await asyncio.start_unix_server(close, f"{folder}/s"),
            loaded(folder) as (shim, kind, over),
            asyncio.timeout(10),
        ):
            await met.wait()
            assert not over.is_set()
            assert kind.cleanups == 0
            assert shim.bundle.exists()

    main()


def test_call_waits_for_a_connection_that_comes_back(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        async with served(folder) as server, loaded(folder) as (shim, kind, _over):
            assert await asked(shim) == 7
            await shim._connection.close()  # type: ignore[union-attr]
            assert await asked(shim) == 7
            assert kind.cleanups == 0
            await server.stop(0)
            assert await shim.settled() is False

    main()


def test_retired_shim_is_cleaned_up_once(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        async with served(folder), loaded(folder) as (shim, kind, over):
            await asked(shim)
            ends = await asyncio.gather(shim.retire(), shim.retire())
            assert [ended and ended.status for ended in ends] == [137, 137]
            assert kind.cleanups == 1
            assert over.is_set()
            assert not shim.bundle.exists()

    main()


def test_left_shim_is_not_cleaned_up(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        async with served(folder), loaded(folder) as (shim, kind, _over):
            await asked(shim)
            await shim.leave()
            assert kind.cleanups == 0
            assert shim.bundle.exists()

    main()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "vsock://x:1", "vsock://3:x", "hvsock://:1", "unix://rel"])
def test_address_of_no_known_form_is_refused(address: str) -> None:
    @on_loop
    async def main() -> None:
        with pytest.raises(InvalidArgument, match="wanted"):
            await connect(Endpoint(address, 3), seconds=1)

    main()


def test_abstract_socket_is_reached(folder: Path) -> None:
    @on_loop
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{folder}/abstract")
            listener.listen()
            connection = await connect(Endpoint(f"{folder}/abstract", 2), seconds=1)
            await connection.close()
            listener.accept()[0].close()

    main()


@pytest.mark.parametrize(
    ("greeting", "text"), [(b"OK 1073\nrest", ""), (b"NO\n", "answered b'NO"), (b"", "wanted 'OK'")]
)
def test_virtual_machine_is_reached_through_its_host_socket(folder: Path, greeting: bytes, text: str) -> None:
    @on_loop
    async def main() -> None:
        heard: list[bytes] = []

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readline())
            writer.write(greeting)
            writer.close()

        async with await asyncio.start_unix_server(greet, f"{folder}/vm"):
            endpoint = Endpoint(f"hvsock://{folder}/vm:1024", 3)
            if text:
                with pytest.raises(MooredError, match=text):
                    await connect(endpoint, seconds=1)
            else:
                await (await connect(endpoint, seconds=1)).close()
            assert heard == [b"CONNECT 1024\n"]

    main()


def test_shim_over_grpc_is_called(folder: Path) -> None:
    import grpc

    @on_loop
    async def main() -> None:
        server = grpc.aio.server()

        async def answer(request: bytes, context: Any) -> bytes:
            found = dict(context.invocation_metadata())["containerd-namespace"]
            if request == b"lost":
                await context.abort(grpc.StatusCode.NOT_FOUND, "it is lost: not found")
            return request + str(found).encode()

        handlers = {"Connect": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_insecure_port(f"unix:{folder}/g")
        await server.start()
        connection = await connect(Endpoint(f"{folder}/g", 3, "grpc"), seconds=5)
        answered = await connection.call(SERVICE, "Connect", b"x", namespace="ns", seconds=5)
        with pytest.raises(MooredError, match="it is lost"):
            await connection.call(SERVICE, "Connect", b"lost", namespace="ns", seconds=5)
        assert answered == b"xns"
        closed = asyncio.create_task(connection.wait_closed())
        await server.stop(0)
        async with asyncio.timeout(5):
            await closed
        await connection.close()
        with pytest.raises(Unavailable):
            await connect(Endpoint(f"{folder}/g", 3, "grpc"), seconds=1)

    main()
