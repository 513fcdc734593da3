"""Registers the controller of sandboxes that shims make."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.errors import FailedPrecondition
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.sandboxes import SANDBOX_CONTROLLER, SandboxController
from moored.kernel.ports.shims import SHIMS
from moored.kernel.ports.tasks import RUNTIME


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[SandboxController]:
    """Find the sandboxes of earlier daemons and make new ones."""
    from moored.plugins.runtime.manager.bundle import Folders
    from moored.plugins.runtime.manager.manager import ShimManager
    from moored.plugins.runtime.sandboxes.controller import ShimController

    manager = ctx.one(SHIMS)
    if not isinstance(manager, ShimManager):
        raise FailedPrecondition(f"shim manager is a {type(manager).__name__!r}, wanted the one of this distribution")
    controller = ShimController(
        manager=manager, folders=Folders(ctx.state, ctx.root), events=ctx.one(EVENT), log=ctx.log
    )
    async with controller.running():
        yield controller


plugin = Registration(
    kind=SANDBOX_CONTROLLER,
    id="shim",
    open=open_,
    requires=(SHIMS, EVENT),
    after=(RUNTIME,),
    start_timeout=30,
    summary="makes a sandbox of each shim that serves the sandbox API",
)
