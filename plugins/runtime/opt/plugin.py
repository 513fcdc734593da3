"""Registers the folder of optional programs: shims and OCI runtimes are found there before those on PATH.

PATH/bin   first on the daemon's PATH, which all that it starts inherits
PATH/lib   first in LD_LIBRARY_PATH
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.shims import OPT

FOLDERS: Final[Mapping[str, str]] = {"PATH": "bin", "LD_LIBRARY_PATH": "lib"}
"""What is put first in which variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.internal.v1.opt"]"""

    path: str = setting(
        "/opt/containerd",
        doc="folder of optional programs: its `bin` comes first on PATH, its `lib` in LD_LIBRARY_PATH; empty for none",
    )

    def __post_init__(self) -> None:
        if self.path and not Path(self.path).is_absolute():
            raise ValueError(f"path is {self.path!r}, wanted an absolute path")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Path | None]:
    """Change the variables of this process until the end; a folder that cannot be made is looked into all the same."""
    if not ctx.config.path:
        yield None
        return
    folder = Path(ctx.config.path)
    ctx.facts.exports["path"] = str(folder)
    before = {name: os.environ.get(name) for name in FOLDERS}
    for name, sub in FOLDERS.items():
        try:
            (folder / sub).mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            ctx.log.info("folder is not made", folder=str(folder / sub), reason=error.strerror)
        # without a colon at its end, which would stand for whatever folder a program is started in
        os.environ[name] = ":".join(part for part in (str(folder / sub), before[name]) if part)
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


plugin = Registration(
    kind=OPT,
    id="opt",
    config=Config,
    open=open_,
    summary="has shims and OCI runtimes found in a folder of their own",
)
