"""Requests to registries: redirects, authentication, retries, and bounds on everything that a server sends.

Source: contracts/semantics.md 7; faults catalogue rows 107 to 118.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from moored.api.registry import dumping
from moored.api.registry.auth import Answer, Authorizer
from moored.api.registry.bodies import bounded
from moored.api.registry.hosts import Host, Tls
from moored.api.registry.network import (
    OUT_OF_BOUNDS,
    OutOfBounds,
    guarded_socket,
    place,
    proxy_for,
    read_address,
    refuse_private,
    same_origin,
)
from moored.api.registry.settings import Limits, Policy, Settings
from moored.api.registry.socks import SCHEMES, SocksConnector
from moored.kernel.errors import DeadlineExceeded, MooredError, PermissionDenied, Unavailable, Unknown

__all__ = ["ATTEMPTS", "MAX_REDIRECTS", "Limits", "Policy", "Requester", "Settings", "Upload"]

log = logging.getLogger("moored.registry")

ATTEMPTS: Final = 5
MAX_REDIRECTS: Final = 10
MAX_TOKEN_ANSWER: Final = 1 << 20
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_AGAIN: Final = frozenset({408, 429})
_LATER: Final = frozenset({500, 503, 504})
_PAUSE: Final = 0.05
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
"""What OpenSSL says of an answer that is no TLS, by version."""

Upload = Callable[[], AsyncIterator[bytes]]
"""Gives the bytes of a body from its beginning; called again when they have to be sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One request: method, headers, and a body as `Requester.request` takes it."""

    method: str
    headers: Mapping[str, str]
    body: bytes | Upload | None = None


class _NotTls(Exception):
    """The other side does not speak TLS."""


class _Broken(Exception):
    """A connection that was there gave no answer; asking again may help."""

    def __init__(self, error: MooredError) -> None:
        super().__init__(error.text)
        self.error = error


class Requester:
    """Pools of connections with what has been learnt of each host. An async context manager."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._authorizers: dict[str, Authorizer] = {}
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._plain: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None
        self._proxied: dict[URL, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        """Open the pools."""
        policy = self.settings.policy
        self._session = self._open(self._connector(None))
        guarded = self._connector(guarded_socket(policy)) if policy.deny_private else None
        self._guarded = self._open(guarded) if guarded else self._session
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        for session in {self._session, self._guarded, *self._proxied.values()} - {None}:
            assert session is not None
            await session.close()

    def _connector(self, sockets: Callable[[Any], Any] | None) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.settings.connections, socket_factory=sockets, ttl_dns_cache=60)

    def _through(self, proxy: URL) -> aiohttp.ClientSession:
        """Give the pool of connections through a SOCKS proxy."""
        if proxy not in self._proxied:
            self._proxied[proxy] = self._open(SocksConnector(proxy, limit=self.settings.connections))
        return self._proxied[proxy]

    def _open(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        # No trust_env: it would send what is in ~/.netrc to whom a server names.
        return aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": self.settings.user_agent},
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[dumping.tracing()] if self.settings.trace else None,
            auto_decompress=False,
            read_bufsize=256 * 1024,
            max_line_size=16 * 1024,
            max_field_size=16 * 1024,
            max_headers=256,
        )

    @asynccontextmanager
    async def request(
        self,
        method: str,
        host: Host,
        path: str,
        *,
        scopes: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | Upload | None = None,
        last: bool = True,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Make one request to a host and give the answer to it, whatever its status, its body unread.

        path    below the host's base (`/repo/manifests/tag`), or a whole URL that the host gave
        last    whether no other host is left to ask, so that a server's trouble is worth waiting for
        Raises Unavailable when the host cannot be reached, DeadlineExceeded, PermissionDenied, Unknown, and what the
        source of a body raises.
        """
        call = _Call(method=method, headers=headers or {}, body=body)
        response = await self._answered(call, host, path, tuple(scopes), last=last)
        try:
            yield response
        finally:
            response.release() if response.content.at_eof() else response.close()

    @asynccontextmanager
    async def foreign(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Get a layer from an address that a manifest names, without credentials. Errors as `request`."""
        call = _Call(method="GET", headers=headers)
        try:
            response, _ = await self._follow(call, read_address(url), None, Host(url=url), trusted=False)
        except _Broken as broken:
            raise broken.error from broken
        except _NotTls:
            raise Unavailable(f"{place(read_address(url))} does not speak TLS") from None
        try:
            yield response
        finally:
            response.close()

    # --- one host -------------------------------------------------------------------------------------------------

    async def _answered(
        self, call: _Call, host: Host, path: str, scopes: tuple[str, ...], *, last: bool
    ) -> aiohttp.ClientResponse:
        authorizer = self._authorizer(host)
        statuses: list[int] = []
        while True:
            sent = await authorizer.header(scopes)
            try:
                response, own = await self._once(call, host, path, sent)
            except _Broken as broken:
                statuses.append(0)
                if not last or len(statuses) >= ATTEMPTS or callable(call.body):
                    raise broken.error from broken
                await asyncio.sleep(_PAUSE)
                continue
            try:
                if response.status == HTTPStatus.UNAUTHORIZED:
                    # Who was redirected to may not ask for what the host's credentials are.
                    asked = response.headers.getall("WWW-Authenticate", []) if own else []
                    again = await authorizer.challenged(asked, scopes, sent)
                else:
                    again = await self._waited(response, statuses, last=last)
            except BaseException:
                response.close()
                raise
            statuses.append(response.status)
            if not again or len(statuses) >= ATTEMPTS:
                return response
            response.close()

    async def _waited(self, response: aiohttp.ClientResponse, statuses: list[int], *, last: bool) -> bool:
        """Whether to ask again, after the wait that the server wants."""
        status = response.status
        if status not in _AGAIN and not (status in _LATER and last and statuses[-1:] != [status]):
            return False
        if len(statuses) + 1 >= ATTEMPTS:
            return False
        pause = _retry_after(response.headers.get("Retry-After", ""))
        if pause > self.settings.limits.retry_after:
            return False
        await asyncio.sleep(max(pause, _PAUSE * 2 ** len(statuses)))
        return True

    async def _once(self, call: _Call, host: Host, path: str, sent: str | None) -> tuple[aiohttp.ClientResponse, bool]:
        base = self._base(host)
        url = path if "://" in path else base + path
        if host.namespace and "://" not in path:
            url += ("&" if "?" in url else "?") + urlencode({"ns": host.namespace})
        try:
            return await self._follow(call, read_address(url), sent, host)
        except _NotTls:
            if not host.fall_back or "://" in path or not base.startswith("https:"):
                raise Unavailable(f"{host.address} does not speak TLS") from None
            self._plain.add(host.address)
            return await self._once(call, host, path, sent)

    def _base(self, host: Host) -> str:
        return host.url.replace("https://", "http://", 1) if host.address in self._plain else host.url

    async def _follow(
        self, call: _Call, url: URL, sent: str | None, host: Host, *, trusted: bool = True
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """Make a request and follow redirects; the answer, and whether the host itself gave it.

        What is the host's (credentials, headers, client certificate) goes to its own scheme, name and port only, and
        not back to it after a detour.
        """
        origin, own = read_address(self._base(host)), trusted
        for _ in range(MAX_REDIRECTS + 1):
            own = own and same_origin(url, origin)
            response = await self._send(call, url, host, own=own, secret=sent if own else None)
            location = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or not location:
                return response, own
            response.close()
            url = read_address(location, url)
        raise Unknown(f"stopped after {MAX_REDIRECTS} redirects from {host.address}")

    # --- one request ----------------------------------------------------------------------------------------------

    async def _send(
        self, call: _Call, url: URL, host: Host, *, own: bool, secret: str | None
    ) -> aiohttp.ClientResponse:
        headers = CIMultiDict(self.settings.headers if own else {})
        if own:
            _add(headers, host)
        headers.update(call.headers)
        if secret:
            headers["Authorization"] = secret
        return await self._exchange(call, url, host, headers, own=own)

    async def _exchange(
        self, call: _Call, url: URL, host: Host, headers: CIMultiDict[str], *, own: bool
    ) -> aiohttp.ClientResponse:
        limits = self.settings.limits
        dial = host.dial_timeout or limits.dial
        proxy = proxy_for(url)
        session = self._session if own or proxy else self._guarded
        if proxy is not None and proxy.scheme in SCHEMES:
            session, proxy = self._through(proxy), None
        assert session is not None, "the client is used outside its context"
        tls = await self._tls(url, host.tls if own else replace(host.tls, pairs=()))
        sending = _Sending(call.body) if callable(call.body) else None
        try:
            if not own and self.settings.policy.deny_private:
                refuse_private(url.host or "", self.settings.policy)
            async with asyncio.timeout(dial + limits.header) as deadline:
                response = await session.request(
                    call.method,
                    url,
                    headers=headers,
                    data=sending.pieces(deadline, limits) if sending else call.body,
                    ssl=tls,
                    proxy=proxy,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=dial, sock_read=limits.stall),
                )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if self.settings.dump is not None:
                await self.settings.dump(dumping.request(call.method, url, headers, type(error).__name__))
            if sending is not None and sending.failure is not None:
                raise sending.failure from None
            raise _told(error, call.method, url) from error
        else:
            if self.settings.dump is not None:
                await self.settings.dump(dumping.exchange(response))
            return response
        finally:
            if sending is not None:
                sending.waiting = False

    async def _tls(self, url: URL, tls: Tls) -> ssl.SSLContext | bool:
        if url.scheme == "http" or tls == Tls():
            return True
        if tls not in self._contexts:
            self._contexts[tls] = await asyncio.to_thread(tls.context)
        return self._contexts[tls]

    def _authorizer(self, host: Host) -> Authorizer:
        if host.url not in self._authorizers:
            self._authorizers[host.url] = Authorizer(host.address, self.settings.credentials, self._asker(host))
        return self._authorizers[host.url]

    def _asker(self, host: Host) -> Callable[[str, str, Mapping[str, str], bytes | None], Any]:
        """Give what asks token servers for this host: they get the host's own headers, and its TLS holds for them."""

        async def ask(method: str, text: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
            url, origin = read_address(text), read_address(self._base(host))
            own = same_origin(url, origin)
            allowed = self.settings.policy.token_hosts
            if allowed and not own and place(url) not in allowed:
                raise PermissionDenied(f"{host.address} names {place(url)} to get tokens from, which is not allowed")
            whole: CIMultiDict[str] = CIMultiDict()
            _add(whole, host)
            whole.update(headers)
            call = _Call(method=method, headers=headers, body=body)
            try:
                response = await self._exchange(call, url, host, whole, own=own)
            except _Broken as broken:
                raise broken.error from broken
            except _NotTls:
                raise Unavailable(f"{place(url)} does not speak TLS") from None
            try:
                return Answer(response.status, await bounded(response, MAX_TOKEN_ANSWER, self.settings.limits))
            finally:
                response.close()

        return ask


def _add(headers: CIMultiDict[str], host: Host) -> None:
    for name, values in host.headers.items():
        for value in values:
            headers.add(name, value)


class _Sending:
    """A body on its way: while it moves, the deadline of its request moves too.

    failure   what the source raised
    waiting   whether the request still waits for its answer
    """

    def __init__(self, source: Upload) -> None:
        self._source = source
        self.failure: BaseException | None = None
        self.waiting = True

    async def pieces(self, deadline: asyncio.Timeout, limits: Limits) -> AsyncGenerator[bytes]:
        """Give the pieces as they are asked for."""
        loop = asyncio.get_running_loop()
        try:
            body = self._source()
            try:
                async for piece in body:
                    self._later(deadline, loop.time() + limits.stall)
                    yield piece
            finally:
                if isinstance(body, AsyncGenerator):
                    await body.aclose()
            self._later(deadline, loop.time() + limits.stall + limits.header)
        except Exception as error:
            self.failure = error
            raise

    def _later(self, deadline: asyncio.Timeout, when: float) -> None:
        if self.waiting and not deadline.expired():
            deadline.reschedule(when)


def _told(error: Exception, method: str, url: URL) -> Exception:
    """Say what became of a request in our own errors, `_Broken` where the connection had been made."""
    where = place(url)
    said = "".join(char for char in str(error) or type(error).__name__ if char.isprintable())[:500]
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ssl.SSLError, OutOfBounds)):
        return _not_connected(error, where, said)
    if isinstance(error, TimeoutError):
        return _Broken(DeadlineExceeded(f"{where} did not answer {method} in time"))
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        return _Broken(Unavailable(f"{where} broke off before it answered {method}: {said}"))
    return Unknown(f"{where} does not answer {method} in HTTP: {said}")


def _not_connected(error: Exception, where: str, said: str) -> Exception:
    cause = error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause, said = error.os_error, error.os_error.strerror or str(error.os_error)
    if isinstance(cause, OSError) and cause.errno == OUT_OF_BOUNDS:
        return PermissionDenied(f"{where} may not be asked: {cause.strerror}")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return DeadlineExceeded(f"{where} cannot be connected to in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Unavailable(f"certificate of {where} is not accepted: {error.certificate_error}")
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return _NotTls() if any(one in said for one in _NOT_TLS) else Unavailable(f"TLS with {where} failed: {said}")
    return Unavailable(f"{where} cannot be reached: {said}")


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header wants, 0 for none or a malformed one."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
