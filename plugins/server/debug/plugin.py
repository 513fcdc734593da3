"""Registers the debug listener: HTTP pages about the daemon's inside on a unix socket."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.http import HTTP, Page
from moored.kernel.ports.server import SERVER, Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.server.v1.debug"]"""

    address: str = setting("", doc="path of the unix socket; empty switches the listener off")
    uid: int = setting(factory=os.geteuid, ge=0, doc="owner of the socket; default the daemon's user")
    gid: int = setting(factory=os.getegid, ge=0, doc="group of the socket; default the daemon's group")


@dataclass(frozen=True, slots=True)
class DebugListener:
    """The Listener of the debug socket."""

    address: str


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Listener]:
    """Serve the pages of all started HTTP plugins; of two with one path the first by plugin id is served."""
    config = ctx.config
    if not config.address:
        raise Skip("no address configured")
    from moored.plugins.server.pages import Handler, serving
    from moored.plugins.server.unixsocket import claim

    pages: dict[str, Handler] = {}
    for _, plugin_pages in sorted(ctx.all(HTTP).items()):
        for path, page in plugin_pages.pages().items():
            pages.setdefault(path, _without_headers(page))
    with claim(config.address, config.uid, config.gid) as place:
        async with serving(pages, place.bound(), ctx.log):
            place.publish()
            ctx.facts.exports["address"] = config.address
            yield DebugListener(config.address)


def _without_headers(
    page: Callable[[Mapping[str, str]], Awaitable[Page]],
) -> Callable[[Mapping[str, str], Mapping[str, str]], Awaitable[Page]]:
    return lambda query, _headers: page(query)


plugin = Registration(
    kind=SERVER,
    id="debug",
    config=Config,
    open=open_,
    after=(HTTP,),
    summary="serves debugging pages over HTTP on a unix socket",
)
