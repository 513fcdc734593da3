"""Registers the local introspection service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.introspection import SERVICE, WARNING, Introspection
from moored.plugins.introspection.local import LocalIntrospection


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[Introspection]:
    """Tell of this daemon."""
    yield LocalIntrospection(ctx.daemon, ctx.named(WARNING, "deprecations"))


plugin = Registration(
    kind=SERVICE,
    id="introspection-service",
    open=open_,
    requires=(WARNING,),
    summary="tells which plugins there are and who this daemon is",
)
