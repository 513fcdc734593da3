"""The transferrer: which source goes with which destination."""

from __future__ import annotations

import asyncio
import importlib
import sys

from moored.api.transfer.names import store_names
from moored.kernel.errors import Unimplemented
from moored.kernel.imagespec.documents import Entry
from moored.kernel.ports.transfer import ArchiveSink, ArchiveSource, Report, Repository, StoredImages
from moored.plugins.transfer.archives import echo, export, import_
from moored.plugins.transfer.lease import leased
from moored.plugins.transfer.settings import Shared


async def _loaded(module: str) -> None:
    """Import a module beside the loop: the HTTP library is large, and many daemons never pull."""
    if module not in sys.modules:
        await asyncio.to_thread(importlib.import_module, module)


class LocalTransfer:
    """The Transferrer over the daemon's own stores."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def transfer(self, source: object, destination: object, report: Report | None = None) -> None:
        """See Transferrer."""
        async with leased(self._shared.leases):
            match source, destination:
                case Repository(), StoredImages():
                    await _loaded("moored.plugins.transfer.pull")
                    from moored.plugins.transfer.pull import pull

                    await pull(self._shared, source, destination, report)
                case StoredImages(), Repository():
                    await _loaded("moored.plugins.transfer.push")
                    from moored.plugins.transfer.push import push

                    await push(self._shared, source, destination, report)
                case StoredImages(), ArchiveSink():
                    await export(self._shared, source, destination, report)
                case StoredImages(), StoredImages():
                    await self._tag(source, destination)
                case ArchiveSource(), StoredImages():
                    await import_(self._shared, source, destination, report)
                case ArchiveSource(), ArchiveSink():
                    await echo(source, destination)
                case _:
                    kinds = f"{type(source).__name__} to {type(destination).__name__}"
                    raise Unimplemented(f"unable to transfer from {kinds}")

    async def _tag(self, source: StoredImages, destination: StoredImages) -> None:
        image = await self._shared.objects.images.get(source.name)
        target = Entry(
            media_type=image.target.media_type,
            digest=image.target.digest,
            size=image.target.size,
            annotations=dict(image.target.annotations),
        )
        await store_names(self._shared.objects.images, destination, target)
