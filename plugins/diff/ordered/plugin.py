"""Registers the differ that clients use: the configured ones, in the configured order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.errors import InvalidArgument
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.diff import DIFFER, Differ
from moored.kernel.ports.introspection import SERVICE
from moored.plugins.diff.ordered.differ import OrderedDiffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.service.v1.diff-service"]"""

    default: list[str] = setting(factory=lambda: ["walking"], doc="ids of the differs to ask, in order")
    sync_fs: bool = setting(
        False,
        doc="write an unpacked layer to the disk before the call returns; committing its snapshot does in any case",
    )


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Differ]:
    """Put the differs in order. Raises InvalidArgument naming one that is not loaded."""
    found = ctx.all(DIFFER)
    if missing := [name for name in ctx.config.default if name not in found]:
        raise InvalidArgument(f"differs {missing} in 'default' are not loaded, there are {sorted(found)}")
    if not ctx.config.default:
        raise InvalidArgument("'default' names no differ")
    yield OrderedDiffer([found[name] for name in ctx.config.default], always_sync=ctx.config.sync_fs)


plugin = Registration(
    kind=SERVICE,
    id="diff-service",
    config=Config,
    open=open_,
    requires=(DIFFER,),
    essential=True,
    summary="asks the differs in the configured order",
)
