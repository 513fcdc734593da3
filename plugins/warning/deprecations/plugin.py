"""Registers the collector of deprecation warnings."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.introspection import WARNING, Warnings
from moored.plugins.warning.deprecations.warnings import DeprecationWarnings


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[Warnings]:
    """Collect from now on."""
    yield DeprecationWarnings()


plugin = Registration(kind=WARNING, id="deprecations", open=open_, summary="remembers deprecated things in use")
