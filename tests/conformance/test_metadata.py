"""Every metadata store does what its port says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from moored.kernel.conformance.metadata import CHECKS, Check
from moored.kernel.ports.metadata import Database
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from moored.plugins.metadata.lmdb.opener import LmdbOpener
from unit.metadata.memory import MemoryDatabase


async def fresh(kind: str, folder: Path) -> Database:
    if kind == "part":
        return await LmdbOpener(structlog.get_logger(), folder, folder / "common").open(folder / "db")
    return LmdbDatabase.opened(folder / "db", limit=64 << 20) if kind == "lmdb" else MemoryDatabase()


@pytest.mark.parametrize("kind", ["lmdb", "part", "memory"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_database(check: Check, kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        db = await fresh(kind, tmp_path)
        try:
            await check(db)
        finally:
            await db.close()

    asyncio.run(run())
