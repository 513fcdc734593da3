"""Runs shipped plugins, found through pyproject.toml, in a real kernel inside the test's own event loop."""

from __future__ import annotations

import asyncio
import functools
import importlib
import tomllib
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

import grpc
import grpc.aio
import pluggy
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue as Text

from moored.api.errors import WIRE
from moored.api.services.version.v1 import version_pb2_grpc
from moored.api.services.version.v1.version_pb2 import VersionResponse
from moored.kernel.errors import NotFound
from moored.kernel.hooks import new_manager
from moored.kernel.lifecycle import Kernel, Settings
from moored.kernel.namespaces import LEASE, current_namespace
from moored.kernel.plugin import InitContext, PluginType, Registration
from moored.kernel.ports.daemon import ConfigCheck, EffectiveConfig, Outcome, PluginRecord, StreamProcessor
from moored.kernel.ports.introspection import WARNING
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.registry import Candidate, Loaded, Source

P = ParamSpec("P")

THING: PluginType[Any] = PluginType("io.moored.thing.v1")
"""A type that nothing shipped has."""
ERRORS = {kind.__name__: kind for kind in WIRE}
VERSION = "io.containerd.grpc.v1.version"
GRPC_SERVER = "io.containerd.server.v1.grpc"
BASICS = (
    "io.containerd.grpc.v1.daemon",
    "io.containerd.grpc.v1.healthcheck",
    "io.containerd.grpc.v1.introspection",
    "io.containerd.grpc.v1.version",
    "io.containerd.service.v1.introspection-service",
    "io.containerd.warning.v1.deprecations",
)
"""What a useful gRPC listener has to serve."""


class FakeDaemon:
    """A DaemonView over a kernel, with config answers that a test sets."""

    def __init__(self, root: Path, state: Path) -> None:
        self.version = "0.0.1-test"
        self.revision = "cafe"
        self.started_at = datetime.now(UTC)
        self.root = root
        self.state = state
        self.kernel: Kernel | None = None
        self.faults: list[str] = []
        self.effective = EffectiveConfig("version = 4\n", (), (), ())
        self.check = ConfigCheck((), ())
        self.timeouts: dict[str, float] = {}

    def plugins(self) -> Sequence[PluginRecord]:
        return self.kernel.records() if self.kernel else ()

    def unhealthy(self) -> Sequence[str]:
        return (*self.faults, *(self.kernel.unhealthy() if self.kernel else ()))

    def give_up(self, reason: str) -> None:
        self.faults.append(reason)

    def timeout(self, name: str) -> float | None:
        return self.timeouts.get(name)

    def stream_processors(self) -> Sequence[StreamProcessor]:
        return ()

    async def config(self) -> EffectiveConfig:
        return self.effective

    async def check_config(self) -> ConfigCheck:
        return self.check


@dataclass
class Running:
    """A started kernel and what it was made of."""

    kernel: Kernel
    daemon: FakeDaemon
    hooks: pluggy.PluginManager
    configs: Mapping[str, Any] = field(default_factory=dict)

    def record(self, uri: str) -> PluginRecord:
        return next(record for record in self.kernel.records() if record.uri == uri)

    def address(self, uri: str) -> str:
        """Where a listener listens."""
        return self.record(uri).exports["address"]


def shipped(uri: str) -> Registration[Any, Any]:
    """The registration behind an entry point of this project."""
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    points = tomllib.loads(pyproject.read_text())["project"]["entry-points"]["moored.plugins"]
    module, _, attribute = points[uri].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, Registration)
    assert found.uri == uri
    return found


@asynccontextmanager
async def running(
    folder: Path,
    *plugins: str | Registration[Any, Any],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    disabled: Collection[str] = (),
    stop_timeout: float = 10,
) -> AsyncGenerator[Running]:
    """Start plugins (URIs of shipped ones, or registrations) with settings by URI; stopped in the end."""
    registrations = [shipped(one) if isinstance(one, str) else one for one in plugins]
    given = configs or {}
    settings = {one.uri: one.config(**given.get(one.uri, {})) for one in registrations if one.config}
    root, state = folder / "root", folder / "state"
    for place in (root, state):
        place.mkdir(exist_ok=True)
    loaded = {one.uri: _loaded(one) for one in registrations}
    hooks = new_manager()
    daemon = FakeDaemon(root, state)
    daemon.kernel = kernel = Kernel(
        {uri: one.candidate for uri, one in loaded.items()},
        {uri: one for uri, one in loaded.items() if uri not in disabled},
        Settings(
            root=root, state=state, start_timeout=10, stop_timeout=stop_timeout, configs=settings, disabled=disabled
        ),
        hooks,
    )
    await kernel.start(daemon)
    try:
        yield Running(kernel, daemon, hooks, settings)
    finally:
        await kernel.stop()


def _loaded(one: Registration[Any, Any]) -> Loaded:
    source = Source("test", "1.0", f"{one.open.__module__}:plugin")
    candidate = Candidate(one.uri, one.kind.uri, one.id, source, lambda: one)
    return Loaded(candidate, one, reason="", traceback="", timed_out=False, seconds=0.01)


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a loop of its own, within 60 s; fails if it leaves a task behind."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)
            # Tasks of a channel or server that was just closed end with the callbacks that are already queued.
            for _ in range(100):
                left = asyncio.all_tasks() - {asyncio.current_task()}
                if not left:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(f"the test left tasks: {left}")

        asyncio.run(main())

    return run


async def program(*command: str | Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a program beside the loop; its status, and its output with errors."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=env
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


# --- plugins and clients made for tests -------------------------------------------------------------------------------


def plug(
    kind: PluginType[Any], id_: str, port: Any = None, error: Exception | None = None, **more: Any
) -> Registration[Any, Any]:
    """A plugin that offers `port`, or fails with `error`."""

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[Any]:
        ctx.facts.exports["root"] = "/somewhere"
        ctx.facts.capabilities.append("rebase")
        ctx.facts.platforms.extend(["linux/amd64", "linux/arm/v7"])
        if error is not None:
            raise error
        yield port

    return Registration(kind=kind, id=id_, open=open_, **more)


@asynccontextmanager
async def basics(folder: Path, *plugins: Any, **more: Any) -> AsyncGenerator[tuple[Running, grpc.aio.Channel]]:
    """The basic services on a unix socket, and a channel to it."""
    configs = {GRPC_SERVER: {"address": f"{folder}/m.sock"}, **more.pop("configs", {})}
    async with running(folder, GRPC_SERVER, *BASICS, *plugins, configs=configs, **more) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        async with grpc.aio.insecure_channel(f"unix:{folder}/m.sock") as channel:
            yield world, channel


async def fails(call: Any) -> tuple[str, str]:
    """Code name and text of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def outcome_of(folder: Path, uri: str, *more: str, **config: Any) -> tuple[Outcome, str]:
    """What becomes of a shipped plugin with such a config."""
    async with running(folder, uri, *more, configs={uri: config}) as world:
        record = world.record(uri)
        return record.outcome, record.reason


async def version(channel: grpc.aio.Channel) -> str:
    """What the version service answers."""
    answer: VersionResponse = await version_pb2_grpc.VersionStub(channel).Version(Empty(), timeout=5)
    return answer.version


class Probe:
    """A service with one method of each kind, and with methods that go wrong."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.ended: list[str] = []

    def register(self, server: GrpcRegistrar) -> None:
        unary, many = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        out, into = grpc.unary_stream_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        kinds = {
            "Echo": (unary, self.echo),
            "Where": (unary, self.where),
            "Fail": (unary, self.fail),
            "Crash": (unary, self.crash),
            "InnerCancel": (unary, self.inner_cancel),
            "Hang": (unary, self.hang),
            "HangHard": (unary, self.hang_hard),
            "Big": (unary, self.big),
            "Absent": (unary, self.absent),
            "Wrong": (unary, self.wrong),
            "Count": (out, self.count),
            "CountByWriting": (out, self.count_by_writing),
            "FailLate": (out, self.fail_late),
            "Endless": (out, self.endless),
            "Join": (into, self.join),
            "JoinByReading": (into, self.join_by_reading),
            "Chat": (many, self.chat),
            "ChatByReading": (many, self.chat_by_reading),
        }
        handlers = {
            name: make(behaviour, request_deserializer=Text.FromString, response_serializer=Text.SerializeToString)
            for name, (make, behaviour) in kinds.items()
        }
        server.add_registered_method_handlers("test.Probe", handlers)

    async def echo(self, request: Text, context: Any) -> Text:
        return request

    async def where(self, request: Text, context: Any) -> Text:
        return Text(value=f"{current_namespace()} {LEASE.get()}")

    async def fail(self, request: Text, context: Any) -> Text:
        raise ERRORS[request.value]("it broke")

    async def crash(self, request: Text, context: Any) -> Text:
        raise KeyError("lost")

    async def inner_cancel(self, request: Text, context: Any) -> Text:
        raise asyncio.CancelledError

    async def hang(self, request: Text, context: Any) -> Text:
        self.began.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.append("hang")
        return Text(value="released")

    async def hang_hard(self, request: Text, context: Any) -> Text:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            self.ended.append("cleaned up")
        return Text()

    async def big(self, request: Text, context: Any) -> Text:
        return Text(value="x" * int(request.value))

    def absent(self, request: Text, context: Any) -> Text:
        raise NotImplementedError("Method not implemented!")

    async def wrong(self, request: Text, context: Any) -> Any:
        return "no message"

    async def count(self, request: Text, context: Any) -> AsyncGenerator[Text]:
        for number in range(int(request.value)):
            yield Text(value=str(number))

    async def count_by_writing(self, request: Text, context: Any) -> None:
        for number in range(int(request.value)):
            await context.write(Text(value=str(number)))

    async def fail_late(self, request: Text, context: Any) -> AsyncGenerator[Text]:
        yield Text(value="first")
        raise NotFound("it ended")

    async def endless(self, request: Text, context: Any) -> AsyncGenerator[Text]:
        try:
            while True:
                yield Text(value="x" * 1000)
        finally:
            self.ended.append("endless")
            self.cancelled.set()

    async def join(self, requests: Any, context: Any) -> Text:
        return Text(value="".join([request.value async for request in requests]))

    async def join_by_reading(self, requests: Any, context: Any) -> Text:
        found = []
        while (request := await context.read()) is not grpc.aio.EOF:
            found.append(request.value)
        self.ended.append("read to the end")
        return Text(value="".join(found))

    async def chat(self, requests: Any, context: Any) -> AsyncGenerator[Text]:
        async for request in requests:
            yield Text(value=f"{request.value}!")

    async def chat_by_reading(self, requests: Any, context: Any) -> None:
        self.began.set()
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(Text(value=f"{request.value}?"))
            self.ended.append("half closed")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            self.cancelled.set()
            raise


class Client:
    """A grpc.aio client of the probe's methods by name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def unary(self, method: str, value: str = "", **more: Any) -> str:
        return (await self._make(self.channel.unary_unary, method)(Text(value=value), **more)).value

    def server_stream(self, method: str, value: str = "", **more: Any) -> Any:
        return self._make(self.channel.unary_stream, method)(Text(value=value), **more)

    def client_stream(self, method: str, *args: Any) -> Any:
        return self._make(self.channel.stream_unary, method)(*args)

    def bidi(self, method: str, *args: Any) -> Any:
        return self._make(self.channel.stream_stream, method)(*args)

    def _make(self, kind: Any, method: str) -> Any:
        path = method if "/" in method else f"/test.Probe/{method}"
        return kind(path, request_serializer=Text.SerializeToString, response_deserializer=Text.FromString)


@dataclass
class Emitter:
    """Emits a deprecation while it starts."""

    messages: dict[str, str] = field(default_factory=dict)

    def registration(self) -> Registration[Any, Any]:
        @asynccontextmanager
        async def open_(ctx: InitContext[Any]) -> AsyncGenerator[Any]:
            for id_, message in self.messages.items():
                ctx.one(WARNING).emit(id_, message)
            yield self

        return Registration(kind=THING, id="emitter", open=open_, requires=(WARNING,))
