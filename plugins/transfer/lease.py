"""The lease that a transfer works under: the caller's, or one for its time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from moored.kernel.errors import NotFound
from moored.kernel.namespaces import bind, current_lease
from moored.kernel.ports.leases import LeaseManager
from moored.kernel.workers import to_the_end

LASTS: Final = timedelta(hours=24)
"""For how long what a daemon that was killed had fetched is there to go on from."""


@asynccontextmanager
async def leased(leases: LeaseManager) -> AsyncGenerator[None]:
    """Work under the current lease, or a new one that ends with the block."""
    if current_lease():
        yield
        return
    until = (datetime.now(UTC) + LASTS).strftime("%Y-%m-%dT%H:%M:%SZ")
    lease = await leases.create("", {"containerd.io/gc.expire": until})
    try:
        with bind(lease=lease.id):
            yield
    finally:
        with suppress(NotFound):
            await to_the_end(leases.delete(lease.id))
