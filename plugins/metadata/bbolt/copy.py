"""Copies whole trees between bbolt files and a metadata store: equal to the byte, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bbolt.pages import DEFAULT_PAGE_SIZE
from moored.plugins.metadata.bbolt.read import BoltFile
from moored.plugins.metadata.bbolt.tree import Enter, Event, Leave, Value, walk
from moored.plugins.metadata.bbolt.write import write_file

BATCH_BYTES: Final = 4 << 20
"""Names and values in one update of an import (more only for one that is larger itself)."""
EVENT_COST: Final = 64
"""Bytes that any event counts for besides."""


async def import_file(path: Path, database: Database) -> None:
    """Fill an empty database with all that a bbolt file holds; other updates have to wait until it returns.

    It takes several updates. When one of them fails or the caller gives up, what they made is removed; when the
    process dies amid of them it stays, so import into a new folder and move that into place afterwards.
    Raises FailedPrecondition if the database is not empty, and the errors of BoltFile and of updates.
    """
    with database.view() as root:
        taken = root.cursor().first()
    if taken is not None:
        raise FailedPrecondition(f"database has bucket {taken[0]!r}, wanted an empty one to import into")
    bolt = await asyncio.to_thread(BoltFile, path)
    try:
        await _import_events(bolt.events(), database)
    except (MooredError, asyncio.CancelledError):
        with contextlib.suppress(MooredError):
            await database.update(_empty)
        raise
    finally:
        bolt.close()


async def _import_events(events: Iterator[Event], database: Database) -> None:
    path: list[bytes] = []
    while batch := await to_the_end(asyncio.to_thread(_next_batch, events)):
        path = await database.update(functools.partial(_apply, path=path, events=batch))


def _next_batch(events: Iterator[Event]) -> list[Event]:
    batch: list[Event] = []
    size = 0
    for event in events:
        batch.append(event)
        size += EVENT_COST + sum(len(part) for part in event if isinstance(part, bytes))
        if size >= BATCH_BYTES:
            break
    return batch


def _apply(root: Bucket, *, path: list[bytes], events: Iterable[Event]) -> list[bytes]:
    """Apply events inside of the bucket at `path`; give the path of the bucket that is open afterwards."""
    path = list(path)
    open_buckets = [root]
    for name in path[1:]:
        below = open_buckets[-1].bucket(name)
        if below is None:
            raise FailedPrecondition(f"bucket {name!r} went away amid the import")
        open_buckets.append(below)
    for event in events:
        match event:
            case Value(key, value):
                open_buckets[-1].put(key, value)
            case Enter(name, sequence):
                if path:
                    open_buckets.append(open_buckets[-1].create_bucket(name))
                path.append(name)
                if sequence:
                    open_buckets[-1].set_sequence(sequence)
            case Leave():
                path.pop()
                if path:
                    open_buckets.pop()
    return path


def _empty(root: Bucket) -> None:
    root.set_sequence(0)
    for name, _ in root.items():  # noqa: PERF102 - no dict
        root.delete_bucket(name)


async def export_file(
    database: Database,
    path: Path,
    *,
    page_size: int = DEFAULT_PAGE_SIZE,
    stored_free_list: bool = False,
    mode: int = 0o600,
) -> None:
    """Write all that a database holds, as of one moment, to a bbolt file; see `write_file` for arguments and errors."""

    def export() -> None:
        with database.view() as root:
            write_file(path, walk(root), page_size=page_size, stored_free_list=stored_free_list, mode=mode)

    await to_the_end(asyncio.to_thread(export))


def apply_tree(root: Bucket, tree: Iterable[Event]) -> None:
    """Put a whole tree into the empty bucket `root`, inside the caller's transaction."""
    if _apply(root, path=[], events=tree):
        raise InvalidArgument("the tree ends inside of a bucket")
