"""Registers the image verifier that asks the programs of a folder."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.transfer import IMAGE_VERIFIER, ImageVerifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.image-verifier.v1.bindir"]"""

    bin_dir: str = setting(
        "/opt/containerd/image-verifier/bin", doc="folder of programs that all must let an image be pulled"
    )
    max_verifiers: int = setting(10, ge=-1, doc="how many of them are asked, by name; -1: all")
    per_verifier_timeout: Duration = setting(Duration(10), ge=0, doc="how long one may take; then the pull is refused")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[ImageVerifier]:
    """Look at the folder anew for each pull."""
    from moored.plugins.verifiers.programs import FolderVerifier

    config = ctx.config
    yield FolderVerifier(
        Path(config.bin_dir), most=config.max_verifiers, seconds=float(config.per_verifier_timeout), log=ctx.log
    )


plugin = Registration(
    kind=IMAGE_VERIFIER,
    id="bindir",
    config=Config,
    open=open_,
    summary="asks the programs of a folder whether an image may be pulled",
)
