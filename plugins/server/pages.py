"""Serves HTTP GET pages on a socket, for the listeners that speak HTTP."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from moored.kernel.ports.http import Page

Handler = Callable[[Mapping[str, str], Mapping[str, str]], Awaitable[Page]]
"""A page from its query parameters and request headers; header names in any case."""

IDLE_SECONDS = 15.0
GRACE = 1.0
"""Seconds that running requests get when the listener stops."""


@asynccontextmanager
async def serving(pages: Mapping[str, Handler], sock: socket.socket, log: FilteringBoundLogger) -> AsyncGenerator[None]:
    """Answer GET (and HEAD) of the pages on a bound stream socket, which is closed in the end.

    Other paths are 404, other methods 405; one that raises is 500 and logged. A page is cancelled when its client goes.
    """

    async def answer(request: web.Request) -> web.Response:
        page = pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="404 page not found\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="405 method not allowed\n", headers={"Allow": "GET, HEAD"})
        try:
            found = await page(request.query, request.headers)
        except Exception:
            log.exception("page failed", path=request.path)
            return web.Response(status=500, text="500 page failed, see the daemon's log\n")
        return web.Response(status=found.status, body=found.body, headers={"Content-Type": found.content_type})

    runner = web.ServerRunner(
        web.Server(answer, access_log=None, keepalive_timeout=IDLE_SECONDS, handler_cancellation=True)  # type: ignore[arg-type]
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=128).start()
        yield
    finally:
        await runner.cleanup()
        sock.close()
