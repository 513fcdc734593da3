"""What a raw snapshotter holds and no record names, found by comparing and removed.

It lists what is there, notes what calls under way hold, and reads the records, in this order (see `busy`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from moored.kernel.collect import referrers_first
from moored.kernel.errors import FailedPrecondition, MooredError, NotFound, Unimplemented
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.ports.snapshots import Info, Snapshotter
from moored.kernel.records import decode_text
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.busy import Busy
from moored.plugins.metadata.bolt.writes import look


@dataclass(frozen=True, slots=True)
class Swept:
    """How much a sweep of a raw store removed; whole is False if something that should go could not be removed."""

    removed: int
    whole: bool

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.removed + other.removed, self.whole and other.whole)


async def sweep_snapshots(
    database: Database, backend: Snapshotter, name: str, busy: Busy, log: FilteringBoundLogger
) -> Swept:
    """Remove from a raw snapshotter what no namespace names, children first, and then the files of removed ones."""
    infos = [info async for info in backend.walk()]
    held = busy.held()
    named = await look(database, lambda root: snapshot_names(root, name))
    unnamed = {info.name: info for info in infos if info.name not in named and info.name not in held}
    swept = await _remove(_children_first(unnamed), busy, backend, log)
    try:
        await backend.cleanup()
    except Unimplemented:
        return swept
    except MooredError as error:
        log.warning("cannot clean up a snapshotter", snapshotter=name, error=error.text)
        return swept + Swept(0, whole=False)
    return swept


def snapshot_names(root: Bucket, snapshotter: str) -> set[str]:
    """Give the raw snapshotter's names that records refer to, those of commits under way included."""
    found: set[str] = set()
    for _, namespace in schema.namespaces(root):
        for _, record in schema.records(schema.path(namespace, schema.SNAPSHOTS, snapshotter)):
            found.add(decode_text(record.get(b"name") or b""))
            if (commit := record.bucket(b"commit")) is not None:
                found.add(decode_text(commit.get(b"name") or b""))
    return found


def _children_first(infos: dict[str, Info]) -> Sequence[str]:
    return referrers_first(infos, lambda name: (infos[name].parent,))


async def _remove(names: Iterable[str], busy: Busy, backend: Snapshotter, log: FilteringBoundLogger) -> Swept:
    swept = Swept(0, whole=True)
    for name in names:
        with busy.removing(name) as free:
            if free:
                swept += await _remove_one(name, backend, log)
    return swept


async def _remove_one(name: str, backend: Snapshotter, log: FilteringBoundLogger) -> Swept:
    try:
        await backend.remove(name)
    except NotFound:
        return Swept(0, whole=True)
    except MooredError as error:
        # FailedPrecondition: it has a child that is kept. Records and raw store differ, which no sweep puts right.
        log.warning("cannot remove a leftover", name=name, error=error.text)
        return Swept(0, whole=isinstance(error, FailedPrecondition))
    return Swept(1, whole=True)
