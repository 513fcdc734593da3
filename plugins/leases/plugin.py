"""Registers the lease manager: the leases of the object database as a plugin of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.leases import LEASES, LeaseManager
from moored.kernel.ports.objects import METADATA


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[LeaseManager]:
    """Hand on what the object database has."""
    yield ctx.one(METADATA).leases


plugin = Registration(
    kind=LEASES,
    id="manager",
    open=open_,
    requires=(METADATA,),
    essential=True,
    summary="leases that keep objects from garbage collection",
)
