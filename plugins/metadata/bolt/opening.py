"""Opens the object database, and never takes a lost or damaged one for a new one.

A collection over a database that forgot its blobs would remove them all. What cannot be opened is left as it is, and
the daemon ends: nothing works without it, and no restart makes it worse.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import FailedPrecondition, MooredError, PermissionDenied, ResourceExhausted, Unavailable
from moored.kernel.failstop import FailStop
from moored.kernel.ports.content import ContentStore
from moored.kernel.ports.databases import DatabaseOpener
from moored.kernel.ports.metadata import Database
from moored.kernel.ports.snapshots import Snapshotter
from moored.plugins.metadata.bolt import schema

LOOK_SECONDS: Final = 5.0
"""How long each store may take to show its first object; one that is away shows none."""
ADVICE: Final = "restore the folder from a copy, or move the whole root away to begin anew"


@asynccontextmanager
async def opened(
    opener: DatabaseOpener,
    folder: Path,
    content: ContentStore,
    snapshotters: Mapping[str, Snapshotter],
    give_up: Callable[[str], None],
) -> AsyncGenerator[Database]:
    """Open the database of `folder` for the block, its schema prepared.

    Raises what opening raises, and FailedPrecondition for one without records beside stores that have objects; then,
    and when it fails later on, `give_up` is told why.
    """
    home = str(opener.home(folder))
    try:
        database = await FailStop(opener, give_up).open(folder)
    except Exception as error:
        give_up(f"the metadata in {home!r} cannot be opened: {error}; {_advice(error)}")
        raise
    try:
        try:
            await _refuse_a_lost_one(database, {"content": content, **snapshotters})
            await database.update(schema.prepare)
        except MooredError as error:
            give_up(f"the metadata in {home!r} cannot be used: {error}; {_advice(error)}")
            raise
        yield database
    finally:
        await database.close()


def _advice(error: Exception) -> str:
    passing = isinstance(error, ResourceExhausted | Unavailable | PermissionDenied)
    return "nothing was changed" if passing else f"nothing was changed; {ADVICE}"


async def _refuse_a_lost_one(database: Database, stores: Mapping[str, Any]) -> None:
    with database.view() as root:
        if root.bucket(schema.SCHEMA) is not None:
            return
    for name, store in stores.items():
        if await _has_objects(store):
            raise FailedPrecondition(f"there are no records, but {name!r} has objects")


async def _has_objects(store: ContentStore | Snapshotter) -> bool:
    try:
        async with asyncio.timeout(LOOK_SECONDS), aclosing(store.walk()) as found:
            async for _ in found:
                return True
    except (MooredError, TimeoutError):
        # A remote one that is away.
        return False
    return False
