"""Starts a snapshotter for a plugin's `open`: its folder, its records, and what introspection shows of it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from moored.kernel.failstop import FailStop
from moored.kernel.plugin import InitContext
from moored.kernel.ports.databases import DATABASES
from moored.kernel.ports.snapshots import Snapshotter
from moored.plugins.snapshots.layers import Layers
from moored.plugins.snapshots.snapshotter import open_snapshotter

_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType({"x86_64": "amd64", "aarch64": "arm64"})


def check_root_path(root_path: str) -> None:
    """Refuse a setting `root_path` that depends on where the daemon was started. Raises ValueError."""
    if root_path and not Path(root_path).is_absolute():
        raise ValueError(f"root_path is {root_path!r}, wanted an absolute path")


@asynccontextmanager
async def started(
    ctx: InitContext[Any], root_path: str, layers_in: Callable[[Path], Layers]
) -> AsyncGenerator[Snapshotter]:
    """Run the snapshotter of the layers in `root_path`, or in the plugin's own folder if that is empty.

    Raises as `open_snapshotter`.
    """
    root = Path(root_path) if root_path else ctx.root
    machine = os.uname().machine
    ctx.facts.exports["root"] = str(root)
    ctx.facts.platforms.append(f"linux/{_ARCHITECTURES.get(machine, machine)}")
    databases = FailStop(ctx.one(DATABASES), ctx.daemon.give_up)
    async with open_snapshotter(layers_in(root), databases, ctx.log) as snapshotter:
        ctx.facts.capabilities.extend(sorted(snapshotter.capabilities))
        yield snapshotter
