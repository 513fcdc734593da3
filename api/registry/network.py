"""Where requests go: addresses that servers name, proxies of the environment, and networks that are out of bounds."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from yarl import URL

from moored.api.registry.settings import Policy
from moored.kernel.errors import InvalidArgument, PermissionDenied

_PLAIN: Final = re.compile(r"[!-~]+")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def read_address(text: str, base: URL | None = None) -> URL:
    """Read an address that a server or a manifest gave, relative to `base`, without changing how it is spelt.

    Signed addresses lose their meaning when their escapes are normalised. Raises PermissionDenied for what is no http
    address.
    """
    try:
        url = URL(text, encoded=_PLAIN.fullmatch(text) is not None)
        if base is not None and not url.scheme:
            url = base.join(url)
        if url.scheme in {"http", "https"} and url.host and url.port:
            return url.with_fragment(None)
    except ValueError:
        pass
    raise PermissionDenied(f"registry sends to {text[:200]!r}, which is no http address")


def same_origin(one: URL, other: URL) -> bool:
    """Whether scheme, host and port are the same."""
    return (one.scheme, (one.host or "").lower(), one.port) == (other.scheme, (other.host or "").lower(), other.port)


def place(url: URL) -> str:
    """Host and port of an address, for messages and lists: the port only where it is not the scheme's own."""
    host = (url.host or "").lower()
    host = f"[{host}]" if ":" in host else host
    return host[:255] if url.is_default_port() else f"{host[:255]}:{url.port}"


# --- networks out of bounds ---------------------------------------------------------------------------------------


def is_public(address: Address) -> bool:
    """Whether an address, with any that it carries inside, is one of the internet's."""
    if isinstance(address, ipaddress.IPv6Address):
        inner: list[Address] = [one for one in (address.ipv4_mapped, address.sixtofour) if one is not None]
        if address.teredo is not None:
            inner.extend(address.teredo)
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if inner:
            return all(is_public(one) for one in inner)
    return address.is_global and not address.is_multicast


OUT_OF_BOUNDS: Final = errno.ENOTNAM
"""An errno that no connection fails with: of several errors the connector keeps nothing else, if all have the same."""


class OutOfBounds(OSError):
    """A connection would go where servers may not send to."""

    def __init__(self, text: str) -> None:
        super().__init__(OUT_OF_BOUNDS, text)

    def __str__(self) -> str:
        return str(self.strerror)


def guarded_socket(policy: Policy) -> Callable[[Any], socket.socket]:
    """Give what makes the socket for a connection, and refuses to by its final address (so no name deceives it)."""

    def made(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        refuse_private(str(address[0]), policy)
        return socket.socket(family, kind, protocol)

    return made


def refuse_private(text: str, policy: Policy) -> None:
    """Raise OutOfBounds for a numeric address that the policy forbids; a name passes."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return
    if is_public(address) or any(address in network for network in policy.private_networks):
        return
    raise OutOfBounds(f"{address} is a private address, where servers may not send to")


# --- proxies ------------------------------------------------------------------------------------------------------


def proxy_for(url: URL, environment: Mapping[str, str] = os.environ) -> URL | None:
    """Give the proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY want, None for none; loopback never has one.

    Raises InvalidArgument for one that is not of scheme http, https, socks5 or socks5h.
    """
    name = f"{url.scheme}_proxy"
    text = environment.get(name) or environment.get(name.upper()) or ""
    if not text or _without_proxy(url, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return None
    try:
        proxy = URL(text if "://" in text else f"http://{text}")
        if proxy.scheme in {"http", "https", "socks5", "socks5h"} and proxy.host:
            return proxy
    except ValueError:
        pass
    raise InvalidArgument(f"proxy of {name.upper()} must be a URL of scheme http, https or socks5")


def _without_proxy(url: URL, exceptions: str) -> bool:
    host = (url.host or "").lower().rstrip(".")
    address = _numeric(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = [entry.strip().lower() for entry in exceptions.split(",") if entry.strip()]
    return "*" in entries or any(_excepted(entry, host, address, url.port) for entry in entries)


def _excepted(entry: str, host: str, address: Address | None, port: int | None) -> bool:
    """Whether an entry of NO_PROXY (a name, `.suffix`, address or network, with a port or without) is for a host."""
    if match := re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", entry):
        if int(match[2]) != port:
            return False
        entry = match[1]
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
    suffix = entry.removeprefix("*")
    return host.endswith(suffix) if suffix.startswith(".") else host == suffix or host.endswith(f".{suffix}")


def _numeric(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
