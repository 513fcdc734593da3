"""Authentication to registries: challenges, and the tokens and headers that answer them.

Source: distribution's token specification; contracts/semantics.md 7.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from moored.api.registry.credentials import Credentials, Lookup
from moored.kernel.errors import PermissionDenied, Unavailable, Unknown

CLIENT_ID: Final = "containerd-client"
_SHORTEST: Final = 60.0
"""Seconds that a token is taken to live for at least, as the specification has it."""
_LONGEST: Final = 86400.0
_EARLY: Final = 10.0
_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_PARAMETER: Final = re.compile(r'([A-Za-z0-9_-]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]++))\s*+(?:,\s*+|$)')
_MAX_HEADER: Final = 8 * 1024
_MAX_CHALLENGES: Final = 8


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a server offers: scheme in lower case, parameters by name."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read `WWW-Authenticate` headers, each holding one challenge, up to what is malformed in it. Best first."""
    found = []
    for header in islice(headers, _MAX_CHALLENGES):
        scheme, _, rest = header[:_MAX_HEADER].strip().partition(" ")
        found.append(Challenge(scheme.lower(), dict(_parameters(rest.lstrip()))))
    order = {"bearer": 0, "basic": 1}
    return sorted((one for one in found if one.scheme in order), key=lambda one: order[one.scheme])


def _parameters(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while match := _PARAMETER.match(text, at):
        yield match[1].lower(), match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        at = match.end()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a token server said: status and body."""

    status: int
    body: bytes


class _Nobody(Exception):
    """There is no user and password."""


Ask = Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[Answer]]
"""Makes one bounded request to a token server: method, url, headers, body."""


@dataclass(slots=True)
class _Token:
    header: str
    until: float


class Authorizer:
    """Keeps what one client has learnt of one host: its challenge and, by scope, its tokens.

    Calls that need the same token at the same time share one request for it.
    """

    def __init__(self, host: str, lookup: Lookup, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._clock = clock
        self._lookup = lookup
        self._ask = ask
        self._credentials: Credentials | None = None
        self._looked_up = False
        self._challenge: Challenge | None = None
        self._told: dict[tuple[str, ...], Sequence[str]] = {}
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._turn = asyncio.Lock()

    async def header(self, scopes: Iterable[str]) -> str | None:
        """Give the `Authorization` to send, None before the host has asked for any, or where there is none to give."""
        async with self._turn:
            if self._challenge is None:
                return None
            try:
                return await self._header(self._challenge, self._scopes(scopes))
            except _Nobody:
                return None  # it may not want any for this

    async def challenged(self, headers: Iterable[str], scopes: Iterable[str], sent: str | None) -> bool:
        """Take in a 401 to a request that carried `sent`; whether trying again makes sense.

        Raises PermissionDenied where the host wants credentials and there are none.
        """
        usable = [one for one in challenges(headers) if one.scheme != "bearer" or "realm" in one.parameters]
        if not usable:
            return False
        async with self._turn:
            known, self._challenge = self._challenge, usable[0]
            self._told[tuple(scopes)] = self._challenge.parameters.get("scope", "").split()
            wanted = self._scopes(scopes)
            if sent is not None:
                if known is not None and known.scheme == "basic" == self._challenge.scheme:
                    return False  # the secret itself was refused
                token = self._tokens.get(wanted)
                if token is not None and token.header == sent:
                    del self._tokens[wanted]
            try:
                return await self._header(self._challenge, wanted) not in (None, sent)
            except _Nobody:
                raise PermissionDenied(f"{self._host} wants a user and a password: no basic auth credentials") from None

    def _scopes(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """What to ask for: what is wanted and what the host has told to be needed for it, one scope a repository."""
        wanted = tuple(wanted)
        actions: dict[str, set[str]] = {}
        for scope in (*wanted, *self._told.get(wanted, ())):
            name, colon, some = scope.rpartition(":")
            actions.setdefault(name + colon if colon else scope, set()).update(some.split(",") if colon else ())
        return tuple(sorted(name + ",".join(sorted(some)) for name, some in actions.items()))

    async def _header(self, challenge: Challenge, scopes: tuple[str, ...]) -> str | None:
        credentials = await self._who()
        if credentials is not None and credentials.header:
            return credentials.header
        if challenge.scheme == "basic":
            if credentials is None or not credentials.user:
                raise _Nobody
            return _basic(credentials)
        token = self._tokens.get(scopes)
        if token is None or token.until <= self._clock():
            token = await self._fetch(challenge, scopes, credentials)
            self._tokens[scopes] = token
        return token.header

    async def _who(self) -> Credentials | None:
        if not self._looked_up:
            self._credentials = await self._lookup(self._host) or None
            self._looked_up = True
        return self._credentials

    async def _fetch(self, challenge: Challenge, scopes: tuple[str, ...], credentials: Credentials | None) -> _Token:
        realm, service = challenge.parameters["realm"], challenge.parameters.get("service", "")
        if urlsplit(realm).scheme not in {"http", "https"}:
            raise PermissionDenied(f"{self._host} names {realm[:200]!r} to get tokens from, which is no http address")
        if credentials is not None:
            answer = await self._post(realm, service, scopes, credentials)
            refused = {400, 401, 404, 405} if credentials.user else {400, 401, 404}
            if answer.status not in refused:
                return self._token(realm, answer)
        answer = await self._get(realm, service, scopes, credentials)
        return self._token(realm, answer)

    async def _post(self, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials) -> Answer:
        form = {"client_id": CLIENT_ID, "scope": " ".join(scopes), "service": service}
        if credentials.user:
            form |= {"grant_type": "password", "username": credentials.user, "password": credentials.secret}
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": credentials.secret}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._ask("POST", realm, headers, urlencode(form).encode())

    async def _get(self, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials | None) -> Answer:
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        parts = urlsplit(realm)
        joined = "&".join(text for text in (parts.query, urlencode(query)) if text)
        headers = {"Authorization": _basic(credentials)} if credentials is not None else {}
        return await self._ask("GET", urlunsplit((*parts[:3], joined, "")), headers, None)

    def _token(self, realm: str, answer: Answer) -> _Token:
        if answer.status in {401, 403}:
            raise PermissionDenied(f"{self._host} refuses the credentials (token server status {answer.status})")
        if not 200 <= answer.status < 300:
            kind = Unavailable if answer.status in {429, 500, 502, 503, 504} else Unknown
            raise kind(f"unexpected status from token server {realm[:200]!r}: {answer.status}")
        found = _object(answer.body)
        token = found.get("access_token") or found.get("token")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise Unknown(f"token server {realm[:200]!r} answered without a token")
        lasts: Any = found.get("expires_in")
        longer = isinstance(lasts, (int, float)) and lasts > _SHORTEST
        seconds: float = min(lasts, _LONGEST) if longer else _SHORTEST
        return _Token(f"Bearer {token}", self._clock() + seconds - _EARLY)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.user}:{credentials.secret}".encode()).decode()
