"""What goes to registries and comes from them, as text for whoever looks for a fault: heads of requests and answers.

Bodies are left out, and what proves who one is: the text may be shown around.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import aiohttp
from yarl import URL

log = logging.getLogger("moored.registry")

Dump: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Takes a head, with the empty line that ends it."""
_SECRET: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})


def exchange(response: aiohttp.ClientResponse) -> bytes:
    """Give the heads of a request and of the answer to it."""
    asked = response.request_info
    version = response.version
    shown = f"HTTP/{version.major}.{version.minor}" if version else "HTTP/1.1"
    first = f"{shown} {response.status} {response.reason or ''}".rstrip()
    return request(asked.method, asked.url, asked.headers) + _head(first, response.headers.items())


def request(method: str, url: URL, headers: Mapping[str, str], error: str = "") -> bytes:
    """Give the head of a request, and why there is no answer to it."""
    items = list(headers.items())
    if "Host" not in headers:
        items.insert(0, ("Host", url.host_port_subcomponent or ""))
    text = _head(f"{method} {url.raw_path_qs} HTTP/1.1", items)
    return text + (f"! {error}\r\n\r\n".encode() if error else b"")


def _head(first: str, headers: Any) -> bytes:
    lines = [first]
    for name, value in headers:
        scheme, blank, _ = value.partition(" ")
        hidden = f"{scheme} ..." if blank and scheme.isalpha() else "..."
        lines.append(f"{name}: {hidden if name.lower() in _SECRET else value}")
    # Whatever a server has put in there ends no line and moves no cursor.
    clean = ("".join(char if char.isprintable() else "?" for char in line) for line in lines)
    return "".join(f"{line}\r\n" for line in (*clean, "")).encode("utf-8", "replace")


def tracing() -> aiohttp.TraceConfig:
    """Give what notes names that are looked up and connections that are made, in the debug log."""
    config = aiohttp.TraceConfig()
    config.on_dns_resolvehost_start.append(_looking_up)
    config.on_dns_resolvehost_end.append(_looked_up)
    config.on_connection_create_end.append(_connected)
    config.on_connection_reuseconn.append(_reused)
    return config


async def _looking_up(_session: object, _context: object, params: aiohttp.TraceDnsResolveHostStartParams) -> None:
    log.debug("DNS lookup of %s", params.host)


async def _looked_up(_session: object, _context: object, params: aiohttp.TraceDnsResolveHostEndParams) -> None:
    log.debug("DNS lookup of %s complete", params.host)


async def _connected(_session: object, _context: object, _params: aiohttp.TraceConnectionCreateEndParams) -> None:
    log.debug("connection made")


async def _reused(_session: object, _context: object, _params: aiohttp.TraceConnectionReuseconnParams) -> None:
    log.debug("connection used again")
