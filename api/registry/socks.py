"""Connections through a SOCKS5 proxy, for aiohttp, which has none of its own: RFC 1928, passwords by RFC 1929.

    socket to the proxy -> methods -> [user, password] -> CONNECT name:port -> the server, as if connected to it

Names are looked up by the proxy, as Go's clients have it for `socks5` and `socks5h` alike.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

SCHEMES: Final = frozenset({"socks5", "socks5h"})
_VERSION: Final = 5
_NO_AUTHENTICATION, _PASSWORD = 0, 2
_PASSWORD_VERSION: Final = 1
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_SECONDS: Final = 30.0
_REFUSALS: Final = {
    1: "a general failure",
    2: "a connection that its rules do not allow",
    3: "an unreachable network",
    4: "an unreachable host",
    5: "a refused connection",
    6: "a time to live that is over",
    7: "a command that it does not know",
    8: "an address type that it does not know",
}


class SocksConnector(aiohttp.TCPConnector):
    """Connects through one proxy (`socks5://[USER:PASSWORD@]HOST[:PORT]`)."""

    def __init__(self, proxy: URL, **more: Any) -> None:
        super().__init__(resolver=_Unresolved(), use_dns_cache=False, **more)
        self._proxy = proxy

    async def _wrap_create_connection(
        self,
        *args: Any,
        addr_infos: Any,
        req: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the base's own
        client_error: type[Exception] = aiohttp.ClientConnectorError,
        **more: Any,
    ) -> Any:
        # The one place where the base makes connections; what it passes on (TLS, server name) holds for ours.
        del addr_infos
        try:
            async with asyncio.timeout(timeout.sock_connect or _SECONDS):
                connected = await connect(self._proxy, req.url.raw_host or "", req.url.port or 0)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"proxy {_shown(self._proxy)} gave no connection in time") from error
        except OSError as error:
            raise client_error(req.connection_key, error) from error
        try:
            return await self._loop.create_connection(*args, sock=connected, **more)
        except BaseException as error:
            connected.close()
            if isinstance(error, OSError):
                raise client_error(req.connection_key, error) from error
            raise


class _Unresolved(AbstractResolver):
    """Leaves names to the proxy."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Give the name as it is."""
        return [ResolveResult(hostname=host, host=host, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""


async def connect(proxy: URL, host: str, port: int) -> socket.socket:
    """Give a socket that leads to a host. Raises OSError with what the proxy, or the way to it, has against it."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(proxy.host, proxy.port or 1080, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    connected = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(connected, address)
        await _greet(connected, proxy)
        await _ask(connected, proxy, host, port)
    except BaseException:
        connected.close()
        raise
    return connected


async def _greet(connected: socket.socket, proxy: URL) -> None:
    """Agree on how to say who one is, and say it."""
    methods = [_NO_AUTHENTICATION, *([_PASSWORD] if proxy.user is not None else [])]
    await _send(connected, bytes((_VERSION, len(methods), *methods)))
    version, method = await _receive(connected, 2, proxy)
    if version != _VERSION:
        raise OSError(f"proxy {_shown(proxy)} does not speak SOCKS5")
    if method not in methods:
        wanted = "a user and a password" if proxy.user is None else "something other than a password"
        raise OSError(f"proxy {_shown(proxy)} wants {wanted}")
    if method == _PASSWORD:
        user, password = (proxy.user or "").encode(), (proxy.password or "").encode()
        if not 0 < len(user) < 256 or len(password) > 255:
            raise OSError(f"user and password of proxy {_shown(proxy)} must have 1 to 255 bytes each")
        await _send(connected, bytes((_PASSWORD_VERSION, len(user))) + user + bytes((len(password),)) + password)
        if (await _receive(connected, 2, proxy))[1]:
            raise OSError(f"proxy {_shown(proxy)} does not accept the user and password")


async def _ask(connected: socket.socket, proxy: URL, host: str, port: int) -> None:
    """Have it connect to a host."""
    await _send(connected, bytes((_VERSION, _CONNECT, 0)) + _address(host) + port.to_bytes(2, "big"))
    version, status, _, kind = await _receive(connected, 4, proxy)
    if version != _VERSION or status:
        reason = _REFUSALS.get(status, f"error {status}")
        raise OSError(f"proxy {_shown(proxy)} tells of {reason} for {host}:{port}")
    # Where it connects from is of no interest, but has to be read.
    length = {_IPV4: 4, _IPV6: 16}.get(kind)
    if length is None:
        length = (await _receive(connected, 1, proxy))[0]
    await _receive(connected, length + 2, proxy)


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        name = host.encode("idna") if not host.isascii() else host.encode()
        if not 0 < len(name) < 256:
            raise OSError(f"host name {host[:100]!r} must have 1 to 255 bytes") from None
        return bytes((_NAME, len(name))) + name
    return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed


async def _send(connected: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connected, data)


async def _receive(connected: socket.socket, size: int, proxy: URL) -> bytes:
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(connected, size - len(data))
        if not piece:
            raise OSError(f"proxy {_shown(proxy)} broke off")
        data += piece
    return data


def _shown(proxy: URL) -> str:
    """Give where it is, without who one is to it."""
    return f"{proxy.host}:{proxy.port or 1080}"
