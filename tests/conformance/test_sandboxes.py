"""The sandbox suites on every implementation: directly, through gRPC, and on containerd's own with our shim."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import structlog

from conformance.remote import CONTAINERDS, endpoint, every_check, is_old, started
from conformance.test_objects import call
from harness import GRPC_SERVER, on_loop, plug, running
from moored.api.sandboxes import from_message, to_message
from moored.api.services.sandbox.v1 import sandbox_pb2 as pb
from moored.api.services.sandbox.v1 import sandbox_pb2_grpc as rpc
from moored.kernel.conformance.sandboxes import (
    ControllerCheck,
    StoreCheck,
    World,
    controller_checks,
    store_checks,
)
from moored.kernel.errors import NotFound
from moored.kernel.namespaces import bind, current_namespace
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.sandboxes import SANDBOX_CONTROLLER, Sandbox
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from moored.plugins.proxy.sandboxes import RemoteController
from shims import OWN, Place, needs_runc, place
from unit.metadata.objects import opened
from unit.sandboxes.world import pause_controller, shim_controller, shim_program, unpack_pause

STORE = ("io.containerd.sandbox.store.v1.local", "io.containerd.grpc.v1.sandboxes")
CONTROLLERS = "io.containerd.grpc.v1.sandbox-controllers"
STORES_BY_CONTAINERD = {
    "update_by_paths_leaves_the_rest": "what is not stored is answered",
}
CONTROLLERS_BY_CONTAINERD = {
    "life_of_a_sandbox": "Platform is not implemented",
    "sandbox_that_is_not_there": "Platform is not implemented",
    "start_is_done_once": "a sandbox that is started twice is ended",
    "stop_is_done_once": "a sandbox that fails to start is ended, also one that was stopped",
}
"""What containerd does differently."""


def needs_root(test: Any) -> Any:
    """Mark what starts shims, and has them call runc."""
    for mark in needs_runc:
        test = mark(test)
    return test


class RemoteStore:
    """The port's SandboxStore at the other end of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = rpc.StoreStub(channel)

    async def get(self, id: str) -> Sandbox:  # noqa: A002 - the port says so
        return from_message((await call(self._stub.Get, pb.StoreGetRequest(sandbox_id=id))).sandbox)

    async def list(self, filters: Sequence[str] = ()) -> list[Sandbox]:
        return [from_message(one) for one in (await call(self._stub.List, pb.StoreListRequest(filters=filters))).list]

    async def create(self, sandbox: Sandbox) -> Sandbox:
        answer = await call(self._stub.Create, pb.StoreCreateRequest(sandbox=to_message(sandbox)))
        return from_message(answer.sandbox)

    async def update(self, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        request = pb.StoreUpdateRequest(sandbox=to_message(sandbox), fields=paths)
        return from_message((await call(self._stub.Update, request)).sandbox)

    async def delete(self, id: str) -> None:  # noqa: A002 - the port says so
        await call(self._stub.Delete, pb.StoreDeleteRequest(sandbox_id=id))


# --- stores -----------------------------------------------------------------------------------------------------------


@every_check(store_checks(), {})  # type: ignore[arg-type]
@on_loop
async def test_store(check: StoreCheck, tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await check(parts.objects.sandboxes)


@every_check(store_checks(), {})  # type: ignore[arg-type]
@on_loop
async def test_store_through_grpc(check: StoreCheck, tmp_path: Path) -> None:
    address = str(tmp_path / "m.sock")
    async with (
        opened(tmp_path, GRPC_SERVER, *STORE, **{GRPC_SERVER: {"address": address}}),
        grpc.aio.insecure_channel(f"unix:{address}") as channel,
    ):
        await check(RemoteStore(channel))


@pytest.fixture
def containerd() -> Generator[str]:
    """The address of a fresh containerd 2."""
    with ExitStack() as stack:
        for binary in CONTAINERDS:
            address = stack.enter_context(started(binary, Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            if not is_old(address):
                yield address
                return
        pytest.skip("needs containerd 2")


@pytest.mark.peer
@every_check(store_checks(), STORES_BY_CONTAINERD)  # type: ignore[arg-type]
def test_store_of_containerd(check: StoreCheck, containerd: str) -> None:
    @on_loop
    async def main() -> None:
        async with grpc.aio.insecure_channel(f"unix:{containerd}") as channel:
            await check(RemoteStore(channel))

    main()


# --- controllers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="ms") as folder, place(Path(folder)) as one:
        yield one


@asynccontextmanager
async def of_shims(here: Place) -> AsyncGenerator[World]:
    async with here.world() as world, shim_controller(here, world) as controller:
        yield World(controller=controller, runtime=OWN, exchange=world.exchange)


@needs_root
@every_check(controller_checks(), {})  # type: ignore[arg-type]
def test_controller_of_shims(here: Place, check: ControllerCheck) -> None:
    @on_loop
    async def main() -> None:
        async with of_shims(here) as world:
            await check(world)

    main()


@needs_root
@every_check(controller_checks(), {})  # type: ignore[arg-type]
def test_controller_through_grpc(here: Place, check: ControllerCheck) -> None:
    address = str(here.folder / "g.sock")

    @on_loop
    async def main() -> None:
        async with of_shims(here) as world:
            plugins = (plug(SANDBOX_CONTROLLER, "shim", world.controller), plug(EVENT, "exchange", world.exchange))
            configs = {GRPC_SERVER: {"address": address}}
            async with (
                running(here.folder, GRPC_SERVER, CONTROLLERS, *plugins, configs=configs),
                endpoint(address) as other,
            ):
                controller = RemoteController(other, "shim")
                await check(World(controller=controller, runtime=OWN, exchange=world.exchange))

    main()


@every_check(controller_checks(), {})  # type: ignore[arg-type]
@on_loop
async def test_controller_of_pause_containers(check: ControllerCheck, tmp_path: Path) -> None:
    unpacked: set[str] = set()
    async with pause_controller(tmp_path) as made:

        async def prepare() -> None:
            if current_namespace() not in unpacked:
                unpacked.add(current_namespace())
                await unpack_pause(made.world.objects)

        with bind("one"):
            runtime, exchange = "io.containerd.runc.v2", made.world.exchange
            await check(World(controller=made.controller, runtime=runtime, exchange=exchange, prepare=prepare))


@pytest.mark.peer
@pytest.mark.root
@every_check(controller_checks(), CONTROLLERS_BY_CONTAINERD)  # type: ignore[arg-type]
def test_controller_of_containerd_with_our_shim(check: ControllerCheck, containerd: str, tmp_path: Path) -> None:
    exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)

    namespace = f"conformance-{os.getpid()}"

    @on_loop
    async def main() -> None:
        async with endpoint(containerd) as other:
            controller = RemoteController(other, "shim")
            try:
                with bind(namespace):
                    await check(World(controller=controller, runtime=shim_program(tmp_path), exchange=exchange))
            finally:
                for place_, id_ in product((namespace, f"{namespace}-2"), ("s1", "s2")):
                    with bind(place_), suppress(NotFound):
                        await controller.shutdown(id_)

    main()
