"""Challenges, and the tokens that answer them: scopes, lifetimes, and which request is made for one."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from harness import on_loop
from moored.api.registry.auth import Answer, Authorizer, Challenge, challenges
from moored.api.registry.credentials import Credentials
from moored.kernel.errors import MooredError, PermissionDenied, Unavailable, Unknown

REALM = "https://auth.test/token"
BEARER = f'Bearer realm="{REALM}",service="reg",scope="repository:a:pull"'
PULL = ("repository:a:pull",)
ME = Credentials("me", "secret")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (BEARER, Challenge("bearer", {"realm": REALM, "service": "reg", "scope": "repository:a:pull"})),
        ('bearer REALM = "a" , Service=b', Challenge("bearer", {"realm": "a", "service": "b"})),
        ('Bearer realm="a\\"b,c"', Challenge("bearer", {"realm": 'a"b,c'})),
        ('Basic realm="x"', Challenge("basic", {"realm": "x"})),
        ("BASIC", Challenge("basic", {})),
        ('Bearer realm="a",broken,service="b"', Challenge("bearer", {"realm": "a"})),
        ('Bearer realm="a', Challenge("bearer", {})),
        ('Bearer realm="a", Basic realm="b"', Challenge("bearer", {"realm": "a"})),
        ("Bearer realm=\udcff", Challenge("bearer", {"realm": "\udcff"})),
    ],
)
def test_a_challenge_is_read(header: str, expected: Challenge) -> None:
    assert challenges([header]) == [expected]


def test_bearer_comes_before_basic_and_others_are_left_out() -> None:
    found = challenges(['Basic realm="x"', "Negotiate", 'Digest realm="d"', 'Bearer realm="y"', ""])
    assert [one.scheme for one in found] == ["bearer", "basic"]


@pytest.mark.parametrize("tail", ["a" * 16_000, '="' + "\\a" * 8_000, "a=" * 8_000, "a" + " " * 16_000, "a=b," * 4_000])
def test_a_hostile_header_takes_no_time(tail: str) -> None:
    start = time.process_time()
    challenges([f"Bearer {tail}"] * 256)
    assert time.process_time() - start < 0.5


@dataclass
class TokenServer:
    """Answers requests for tokens by a function, and keeps them."""

    answer: Callable[[str, Mapping[str, list[str]]], tuple[int, object]]
    asked: list[tuple[str, dict[str, list[str]], Mapping[str, str]]] = field(default_factory=list)

    async def __call__(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        given = parse_qs(urlsplit(url).query if method == "GET" else (body or b"").decode())
        self.asked.append((method, given, headers))
        await asyncio.sleep(0)
        status, found = self.answer(method, given)
        return Answer(status, found if isinstance(found, bytes) else json.dumps(found).encode())


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(server: TokenServer, who: Credentials | None = None, clock: Clock | None = None) -> Authorizer:
    async def lookup(_: str) -> Credentials | None:
        return who

    return Authorizer("reg.test", lookup, server, clock or Clock())


def giving(token: object = "t", **more: object) -> TokenServer:
    return TokenServer(lambda _method, _given: (200, {"token": token, **more}))


async def failing(server: TokenServer, who: Credentials | None = None, header: str = BEARER) -> MooredError:
    with pytest.raises(MooredError) as error:
        await made(server, who).challenged([header], PULL, None)
    return error.value


# --- what is asked ------------------------------------------------------------------------------------------------


@on_loop
async def test_nothing_is_sent_before_the_host_asks() -> None:
    server = giving()
    assert await made(server, ME).header(PULL) is None
    assert server.asked == []


@on_loop
async def test_without_credentials_a_token_is_got_anonymously() -> None:
    server = giving()
    authorizer = made(server)
    assert await authorizer.challenged([BEARER], PULL, None)
    assert await authorizer.header(PULL) == "Bearer t"
    assert server.asked == [("GET", {"service": ["reg"], "scope": ["repository:a:pull"]}, {})]


@on_loop
async def test_scopes_are_those_asked_for_and_those_wanted_one_a_repository() -> None:
    server = giving()
    wanted = ("repository:b:pull", "repository:a:push,pull", "repository:h:5000/c:pull", "registry:catalog:*")
    await made(server).challenged([BEARER], wanted, None)
    [(_, given, _)] = server.asked
    assert given["scope"] == [
        "registry:catalog:*",
        "repository:a:pull,push",
        "repository:b:pull",
        "repository:h:5000/c:pull",
    ]


@on_loop
async def test_what_a_host_asks_for_once_is_not_asked_for_other_things() -> None:
    server = giving()
    authorizer = made(server)
    await authorizer.challenged([BEARER.replace("pull", "pull,push")], ("repository:a:pull,push",), None)
    await authorizer.header(PULL)
    assert server.asked[-1][1]["scope"] == ["repository:a:pull"]


@on_loop
async def test_with_a_password_the_token_is_posted_for() -> None:
    server = TokenServer(lambda _method, _given: (200, {"access_token": "x", "token": "y"}))
    authorizer = made(server, ME)
    assert await authorizer.challenged([BEARER], PULL, None)
    assert await authorizer.header(PULL) == "Bearer x"
    [(method, given, headers)] = server.asked
    assert method == "POST"
    assert given == {
        "client_id": ["containerd-client"],
        "grant_type": ["password"],
        "username": ["me"],
        "password": ["secret"],
        "scope": ["repository:a:pull"],
        "service": ["reg"],
    }
    assert "Authorization" not in headers


@on_loop
async def test_a_secret_without_a_user_is_a_refresh_token() -> None:
    server = giving()
    await made(server, Credentials("", "r")).challenged([BEARER], PULL, None)
    [(_, given, _)] = server.asked
    assert (given["grant_type"], given["refresh_token"]) == (["refresh_token"], ["r"])
    assert "password" not in given


@pytest.mark.parametrize("status", [400, 401, 404, 405])
@on_loop
async def test_a_server_without_post_is_asked_with_get_and_basic(status: int) -> None:
    server = TokenServer(lambda method, _given: (status, b"") if method == "POST" else (200, {"token": "t"}))
    assert await made(server, ME).challenged([BEARER], PULL, None)
    method, given, headers = server.asked[-1]
    assert method == "GET"
    assert "password" not in given
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()


@on_loop
async def test_a_refresh_token_is_no_user_for_405() -> None:
    server = TokenServer(lambda method, _given: (405, b"") if method == "POST" else (200, {"token": "t"}))
    assert isinstance(await failing(server, Credentials("", "r")), Unknown)
    assert len(server.asked) == 1


@on_loop
async def test_the_realms_own_query_is_kept() -> None:
    urls: list[str] = []

    async def ask(_method: str, url: str, _headers: Mapping[str, str], _body: bytes | None) -> Answer:
        urls.append(url)
        return Answer(200, b'{"token": "t"}')

    async def lookup(_: str) -> Credentials | None:
        return None

    await Authorizer("reg.test", lookup, ask).challenged(['Bearer realm="https://auth.test/t?a=b%26c#x"'], ("s",), None)
    assert parse_qsl(urlsplit(urls[0]).query) == [("a", "b&c"), ("scope", "s")]
    assert "#" not in urls[0]


@on_loop
async def test_a_ready_header_is_sent_as_it_is() -> None:
    server = giving()
    authorizer = made(server, Credentials(header="Bearer ready"))
    assert await authorizer.challenged([BEARER], PULL, None)
    assert await authorizer.header(PULL) == "Bearer ready"
    assert server.asked == []


# --- basic --------------------------------------------------------------------------------------------------------


@on_loop
async def test_basic_is_sent_and_given_up_when_it_is_refused() -> None:
    authorizer = made(giving(), ME)
    assert await authorizer.challenged(["Basic realm=x"], PULL, None)
    sent = await authorizer.header(PULL)
    assert sent == "Basic " + base64.b64encode(b"me:secret").decode()
    assert not await authorizer.challenged(["Basic realm=x"], PULL, sent)


@pytest.mark.parametrize("who", [None, Credentials("", "r"), Credentials("me", "")])
@on_loop
async def test_basic_needs_a_user_and_a_password(who: Credentials | None) -> None:
    error = await failing(giving(), who, "Basic realm=x")
    assert isinstance(error, PermissionDenied)
    assert error.text == "reg.test wants a user and a password: no basic auth credentials"


@on_loop
async def test_a_bearer_challenge_without_realm_leaves_basic() -> None:
    authorizer = made(giving(), ME)
    assert await authorizer.challenged(["Bearer service=x", "Basic realm=x"], PULL, None)
    assert (await authorizer.header(PULL) or "").startswith("Basic ")


@pytest.mark.parametrize("headers", [[], ["Negotiate"], ["Bearer service=x"], [""]])
@on_loop
async def test_a_challenge_that_nothing_answers_is_not_tried(headers: list[str]) -> None:
    assert not await made(giving(), ME).challenged(headers, PULL, None)


# --- how long tokens last -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires", "lives"),
    [
        (300, 290),
        (3600.5, 3590),
        (1, 50),
        (-5, 50),
        (0, 50),
        (None, 50),
        ("3600", 50),
        (True, 50),
        (10**400, 86390),
        (float("inf"), 86390),
        (float("nan"), 50),
    ],
)
@on_loop
async def test_a_token_is_used_until_shortly_before_it_expires(expires: object, lives: float) -> None:
    clock, server = Clock(), giving(expires_in=expires)
    authorizer = made(server, clock=clock)
    await authorizer.challenged([BEARER], PULL, None)
    clock.now += lives - 1
    await authorizer.header(PULL)
    assert len(server.asked) == 1
    clock.now += 2
    await authorizer.header(PULL)
    assert len(server.asked) == 2


@on_loop
async def test_each_set_of_scopes_has_a_token_of_its_own() -> None:
    server = TokenServer(lambda _method, given: (200, {"token": given["scope"][0]}))
    authorizer = made(server)
    await authorizer.challenged([BEARER], PULL, None)
    assert await authorizer.header(("repository:b:pull",)) == "Bearer repository:b:pull"
    assert await authorizer.header(PULL) == "Bearer repository:a:pull"
    assert len(server.asked) == 2


@on_loop
async def test_a_token_that_is_refused_is_replaced() -> None:
    tokens = iter("abc")
    server = TokenServer(lambda _method, _given: (200, {"token": next(tokens)}))
    authorizer = made(server)
    await authorizer.challenged([BEARER], PULL, None)
    assert await authorizer.challenged([BEARER], PULL, "Bearer a")
    assert await authorizer.header(PULL) == "Bearer b"


@on_loop
async def test_the_same_token_again_is_not_tried_again() -> None:
    authorizer = made(giving("same"))
    await authorizer.challenged([BEARER], PULL, None)
    assert not await authorizer.challenged([BEARER], PULL, "Bearer same")


@on_loop
async def test_requests_at_the_same_time_share_one_token() -> None:
    server = giving()
    authorizer = made(server)
    await asyncio.gather(*(authorizer.challenged([BEARER], PULL, None) for _ in range(10)))
    assert {await authorizer.header(PULL) for _ in range(10)} == {"Bearer t"}
    assert len(server.asked) == 1


@on_loop
async def test_who_one_is_is_looked_up_once() -> None:
    asked: list[str] = []

    async def lookup(host: str) -> Credentials | None:
        asked.append(host)
        return None

    authorizer = Authorizer("reg.test", lookup, giving())
    await authorizer.challenged([BEARER], PULL, None)
    await authorizer.header(("other",))
    assert asked == ["reg.test"]


# --- what token servers answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, PermissionDenied),
        (403, PermissionDenied),
        (302, Unknown),
        (418, Unknown),
        (429, Unavailable),
        (503, Unavailable),
    ],
)
@on_loop
async def test_a_status_of_the_token_server_is_told(status: int, kind: type[MooredError]) -> None:
    error = await failing(TokenServer(lambda _method, _given: (status, b"")))
    assert type(error) is kind
    assert str(status) in error.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"token": ""}',
        b'{"token": 1}',
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": "\\u0000"}',
        b'{"token": "\xc3\xa4"}',
        b'{"token": "' + b"a" * 20_000 + b'"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
@on_loop
async def test_an_answer_without_a_proper_token_is_an_error(body: bytes) -> None:
    error = await failing(TokenServer(lambda _method, _given: (200, body)))
    assert isinstance(error, Unknown)
    assert "without a token" in error.text


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "unix:///run/x", "/token", "auth.test/token", ""])
@on_loop
async def test_a_realm_that_is_no_http_address_is_not_asked(realm: str) -> None:
    server = giving()
    error = await failing(server, ME, f'Bearer realm="{realm}"')
    assert isinstance(error, PermissionDenied)
    assert server.asked == []
