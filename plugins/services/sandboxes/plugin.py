"""Registers the services of the sandbox store and of the sandbox controllers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.sandboxes import POD_SANDBOX_CONTROLLER, SANDBOX_CONTROLLER, SANDBOX_STORE
from moored.kernel.ports.services import GRPC, GrpcService


@asynccontextmanager
async def open_store(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve the store on every gRPC listener."""
    from moored.plugins.services.sandboxes.store import StoreService

    yield StoreService(ctx.named(SANDBOX_STORE, "local"))


@asynccontextmanager
async def open_controllers(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve all controllers on every gRPC listener."""
    from moored.plugins.services.sandboxes.controllers import ControllersService

    controllers = {**ctx.all(POD_SANDBOX_CONTROLLER), **ctx.all(SANDBOX_CONTROLLER)}
    if not controllers:
        raise Skip("there are no sandbox controllers")
    yield ControllersService(controllers, ctx.one(EVENT), ctx.all(SANDBOX_STORE).get("local"))


store = Registration(
    kind=GRPC,
    id="sandboxes",
    open=open_store,
    requires=(SANDBOX_STORE,),
    summary="lets clients list, make, change and remove the records of sandboxes",
)

controllers = Registration(
    kind=GRPC,
    id="sandbox-controllers",
    open=open_controllers,
    requires=(EVENT,),
    after=(POD_SANDBOX_CONTROLLER, SANDBOX_CONTROLLER, SANDBOX_STORE),
    summary="lets clients start, watch and end sandboxes",
)
