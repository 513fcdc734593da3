"""The content store of a namespace does what the content port says, directly and through the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moored.kernel.conformance.content import Check, checks
from moored.kernel.namespaces import bind
from moored.plugins.metadata.bolt.content import ISOLATED, SHARED
from unit.content.namespaced import world

every_check = pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))


@every_check
@pytest.mark.parametrize("policy", [SHARED, ISOLATED])
def test_namespaced_content(check: Check, policy: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, policy) as parts:
            with bind("conformance"):
                await check(parts.content)

    asyncio.run(run())
