"""What a container has changed in its image's files, as a layer that the daemon makes of the two snapshots.

view of the parent  <-- compare -->  the container's snapshot        gives a layer, held by the caller's lease
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

from moored.api.cli import identity
from moored.api.client import Client
from moored.api.client.containers import Container
from moored.kernel.errors import FailedPrecondition, MooredError
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount

PLAIN: Final = "application/vnd.oci.image.layer.v1.tar"
GZIP: Final = f"{PLAIN}+gzip"


@asynccontextmanager
async def parent_view(client: Client, container: Container) -> AsyncGenerator[tuple[list[Mount], list[Mount]]]:
    """Give the mounts of what a container began with, and of what it has now. Raises FailedPrecondition."""
    record = container.record
    if not record.snapshot_key:
        raise FailedPrecondition(f"container {identity.called(container)!r} has no snapshot, its changes are not known")
    snapshots = client.snapshots(record.snapshotter)
    parent = (await snapshots.stat(record.snapshot_key)).parent
    view = f"moorctl-view-{secrets.token_hex(8)}"
    lower = await snapshots.view(view, parent)
    try:
        yield lower, await snapshots.mounts(record.snapshot_key)
    finally:
        with suppress(MooredError):
            await snapshots.remove(view)


async def layer(leased: Client, container: Container, media_type: str) -> Descriptor:
    """Give the layer of a container's changes, which only the client's lease holds."""
    async with parent_view(leased, container) as (lower, upper):
        reference = f"moorctl-changes-{secrets.token_hex(8)}"
        return await leased.diffs.compare(lower, upper, media_type=media_type, reference=reference)
