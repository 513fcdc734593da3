"""The content plugin in a kernel."""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from harness import THING, on_loop, running
from moored.kernel.conformance.content import get, put
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.content import CONTENT, ContentStore
from moored.kernel.ports.daemon import Outcome

URI = "io.containerd.content.v1.content"


@on_loop
async def test_started_plugin_is_a_content_store_in_its_own_folder(tmp_path: Path) -> None:
    found: list[ContentStore] = []

    @asynccontextmanager
    async def use(ctx: InitContext[Any]) -> AsyncGenerator[object]:
        found.append(ctx.one(CONTENT))
        yield found[0]

    user = Registration(kind=THING, id="user", open=use, requires=(CONTENT,))
    async with running(tmp_path, URI, user) as kernel:
        assert kernel.record(URI).outcome is Outcome.OK
        digest = await put(found[0], b"data")
        assert await get(found[0], digest) == b"data"
        root = tmp_path / "root" / URI
        assert kernel.record(URI).exports["root"] == str(root)

    folders = (root, root / "blobs", root / "blobs" / "sha256", root / "ingest")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o755] * 4


@on_loop
async def test_folder_in_use_fails_the_plugin_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, URI), running(tmp_path, URI) as second:
        record = second.record(URI)
        assert record.outcome is Outcome.FAILED
        assert "in use by another store" in record.reason


@on_loop
async def test_number_of_threads_is_a_setting(tmp_path: Path) -> None:
    async with running(tmp_path, URI, configs={URI: {"threads": 2}}) as kernel:
        assert kernel.record(URI).outcome is Outcome.OK
