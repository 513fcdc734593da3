"""The shipped tasks over the fake runtime, in a kernel of the test's own, with the object database and its services."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from harness import GRPC_SERVER, THING, Running, running
from moored.api.services.tasks.v1 import tasks_pb2_grpc as rpc
from moored.kernel.conformance.tasks import spec
from moored.kernel.namespaces import bind
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.containers import Container, TypedBytes
from moored.kernel.ports.events import EVENT, Exchange
from moored.kernel.ports.introspection import WARNING, Warnings
from moored.kernel.ports.objects import METADATA, Objects
from moored.kernel.ports.tasks import RUNTIME, TASKS, Tasks
from unit.metadata.objects import STORES
from unit.tasks.fake import FakeRuntime, fake_runtime

TASKS_SERVICE = "io.containerd.service.v1.tasks-service"
TASKS_GRPC = "io.containerd.grpc.v1.tasks"
DIFFER = "io.containerd.differ.v1.walking"
DEPRECATIONS = "io.containerd.warning.v1.deprecations"
HEADERS = (("containerd-namespace", "one"),)


@dataclass(frozen=True)
class Opened:
    """What a test looks at."""

    tasks: Tasks
    runtime: FakeRuntime
    objects: Objects
    exchange: Exchange
    warnings: Warnings
    kernel: Running

    async def container(
        self, id_: str, *words: str, namespace: str = "one", labels: Mapping[str, str] | None = None, **more: Any
    ) -> Container:
        """Make a container that runs words."""
        given = {"runtime": "io.containerd.runc.v2", "spec": spec(id_, *(words or ("sleep", "1000")))}
        with bind(namespace):
            return await self.objects.containers.create(Container(id=id_, labels=labels or {}, **{**given, **more}))


@asynccontextmanager
async def opened(
    folder: Path, *more: str | Registration[Any, Any], runtime: FakeRuntime | None = None, **configs: Any
) -> AsyncGenerator[Opened]:
    """Start it, with further plugins; tasks end with it, unless the runtime was given."""
    found: list[Any] = []

    @asynccontextmanager
    async def open_runtime(ctx: InitContext[None]) -> AsyncGenerator[FakeRuntime]:
        if runtime is not None:
            runtime.exchange = ctx.one(EVENT)
            yield runtime
            return
        async with fake_runtime(ctx.one(EVENT)) as made:
            yield made

    @asynccontextmanager
    async def look(ctx: InitContext[None]) -> AsyncGenerator[None]:
        found.append((ctx.named(TASKS, "tasks-service"), ctx.one(RUNTIME), ctx.one(METADATA), ctx.one(EVENT)))
        found.append(ctx.one(WARNING))
        yield

    fake: Registration[Any, Any] = Registration(kind=RUNTIME, id="task", open=open_runtime, requires=(EVENT,))
    needs = (TASKS, RUNTIME, METADATA, EVENT, WARNING)
    probe: Registration[Any, Any] = Registration(kind=THING, id="probe", open=look, requires=needs)
    plugins: Sequence[Any] = (*STORES, DEPRECATIONS, TASKS_SERVICE, fake, *more, probe)
    async with running(folder, *plugins, configs=configs) as kernel:
        assert found, [(one.uri, one.reason) for one in kernel.kernel.records() if one.reason]
        yield Opened(*found[0], found[1], kernel)


@asynccontextmanager
async def served(folder: Path, *more: str, **configs: Any) -> AsyncGenerator[tuple[Opened, Any]]:
    """The same with its gRPC face, and a stub of that."""
    address = str(folder / "m.sock")
    configs = {GRPC_SERVER: {"address": address}, **configs}
    async with (
        opened(folder, GRPC_SERVER, TASKS_GRPC, *more, **configs) as world,
        grpc.aio.insecure_channel(f"unix:{address}") as channel,
    ):
        yield world, rpc.TasksStub(channel)


def typed(type_url: str, value: bytes = b"") -> TypedBytes:
    """A message of that type."""
    return TypedBytes(type_url, value)
