"""Registers the sandbox store: the sandboxes of the object database as a plugin of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.sandboxes import SANDBOX_STORE, SandboxStore


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[SandboxStore]:
    """Hand on what the object database has."""
    yield ctx.one(METADATA).sandboxes


plugin = Registration(
    kind=SANDBOX_STORE,
    id="local",
    open=open_,
    requires=(METADATA,),
    summary="records of sandboxes",
)
