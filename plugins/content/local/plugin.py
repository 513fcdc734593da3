"""Registers the local content store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.content import CONTENT, ContentStore
from moored.plugins.content.local.store import THREADS, open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.content.v1.content"]"""

    threads: int = setting(THREADS, ge=2, le=256, doc="blobs read, written, hashed and synced side by side")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[ContentStore]:
    """Serve the plugin's own folder."""
    ctx.facts.exports["root"] = str(ctx.root)
    async with open_store(ctx.root, ctx.log, ctx.config.threads) as store:
        yield store


plugin = Registration(
    kind=CONTENT,
    id="content",
    open=open_,
    config=Config,
    summary="blobs by digest in a local folder",
)
