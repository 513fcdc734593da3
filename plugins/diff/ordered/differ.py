"""Asks several differs in an order until one does not decline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from moored.kernel.errors import Unimplemented
from moored.kernel.ports.diff import NO_LABELS, NO_PAYLOADS, Differ, Labels, Progress
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount


class OrderedDiffer:
    """A Differ over others. `always_sync` makes every apply durable before it returns, asked for or not."""

    def __init__(self, differs: Sequence[Differ], *, always_sync: bool) -> None:
        self._differs = tuple(differs)
        self._always_sync = always_sync

    async def apply(
        self,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, bytes] = NO_PAYLOADS,
        sync_fs: bool = True,
        progress: Progress | None = None,
    ) -> Descriptor:
        """See the port."""
        sync = sync_fs or self._always_sync
        return await self._first(
            lambda differ: differ.apply(descriptor, mounts, payloads=payloads, sync_fs=sync, progress=progress)
        )

    async def compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        reference: str = "",
        labels: Labels = NO_LABELS,
        source_date_epoch: int | None = None,
    ) -> Descriptor:
        """See the port."""
        return await self._first(
            lambda differ: differ.compare(
                lower,
                upper,
                media_type=media_type,
                reference=reference,
                labels=labels,
                source_date_epoch=source_date_epoch,
            )
        )

    async def _first(self, call: Callable[[Differ], Awaitable[Descriptor]]) -> Descriptor:
        """The answer of the first that has one; the last one's refusal when all decline."""
        for differ in self._differs[:-1]:
            try:
                return await call(differ)
            except Unimplemented:
                continue
        return await call(self._differs[-1])
