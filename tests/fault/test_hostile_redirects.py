"""The catalogue of hostile registries, rows 114 to 116: whom a registry sends to, and that no secret goes with it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fault.registry_pulls import DATA, LAYER, MIB, SECRETS, blob, me, refusal
from harness import on_loop
from hostile_registry import HostileRegistry, speaking
from moored.api.registry.hosts import Host, Tls
from moored.api.registry.settings import Policy
from moored.kernel.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unknown,
)
from moored.kernel.imagespec import media
from registries import Authority, client, described, fetched, once

# --- 114: token servers -------------------------------------------------------------------------------------------


@asynccontextmanager
async def with_tokens(
    body: bytes = b'{"access_token": "t"}',
) -> AsyncGenerator[tuple[HostileRegistry, HostileRegistry]]:
    """A registry that wants tokens of another server."""

    async def token(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Bearer t":
            return blob()
        challenge = f'Bearer realm="{tokens.url}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with HostileRegistry(token) as tokens, HostileRegistry(answer) as server:
        yield server, tokens


@on_loop
async def test_114_a_registry_may_name_any_token_server() -> None:
    async with (
        with_tokens() as (server, tokens),
        client(f"{server.place}/a:one", server.host, credentials=me) as registry,
    ):
        assert await fetched(registry, LAYER) == DATA
    assert b"hunter2" in tokens.asked[0].body


@pytest.mark.parametrize("policy", [Policy(token_hosts=frozenset({"auth.test"})), Policy(deny_private=True)])
@on_loop
async def test_114_a_policy_keeps_secrets_from_internal_token_servers(policy: Policy) -> None:
    async with with_tokens() as (server, tokens):
        error = await refusal(server, credentials=me, policy=policy)
    assert isinstance(error, PermissionDenied)
    assert tokens.place in error.text
    assert tokens.asked == []


@on_loop
async def test_114_a_policy_may_allow_the_token_server() -> None:
    async with with_tokens() as (server, tokens):
        for policy in (
            Policy(token_hosts=frozenset({tokens.place})),
            Policy(deny_private=True, private_networks=(ip_network("127.0.0.0/8"),)),
        ):
            async with client(f"{server.place}/a:one", server.host, credentials=me, policy=policy) as registry:
                assert await fetched(registry, LAYER) == DATA


@on_loop
async def test_114_the_registry_itself_may_always_give_tokens() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"token": "t"})
        if request.headers.get("Authorization") == "Bearer t":
            return blob()
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})

    policy = Policy(token_hosts=frozenset({"auth.test"}), deny_private=True)
    async with (
        HostileRegistry(answer) as server,
        client(f"{server.place}/a:one", server.host, policy=policy) as registry,
    ):
        assert await fetched(registry, LAYER) == DATA


@pytest.mark.parametrize("size", [2 * MIB, 200 * MIB])
@on_loop
async def test_114_a_token_of_megabytes_is_given_up(size: int) -> None:
    async def speak(head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/token" in head:
            writer.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"token": "')
            await server.flood(writer, b"a" * 65536, size)
            return
        challenge = f'Bearer realm="http://{server.place}/token"'.encode()
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: " + challenge + b"\r\n\r\n")

    async with speaking(speak) as server:
        error = await refusal(server)
    assert isinstance(error, InvalidArgument)
    assert server.sent < 6 * MIB


@on_loop
async def test_114_a_token_server_that_redirects_is_not_followed() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})

    async with HostileRegistry(answer) as server:
        error = await refusal(server, credentials=me)
    assert isinstance(error, Unknown)
    assert "307" in error.text


# --- 115, 116: redirects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["fetch", "resolve"])
@on_loop
async def test_115_redirects_in_a_circle_end_after_ten(action: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/again"})

    async with HostileRegistry(answer) as server:
        error = await refusal(server, action)
    assert isinstance(error, Unknown)
    assert error.text.startswith("stopped after 10 redirects")
    assert len(server.asked) == 11


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "unix:/run/x.sock", "ftp://127.0.0.1/", "http://", "http://[::1", "http://a:0/"]
)
@on_loop
async def test_115_a_redirect_to_what_is_no_http_address_is_refused(location: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location})

    async with HostileRegistry(answer) as server:
        error = await refusal(server)
    assert isinstance(error, PermissionDenied)
    assert "which is no http address" in error.text


@on_loop
async def test_115_a_redirect_without_a_place_is_an_answer() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302)

    async with HostileRegistry(answer) as server:
        assert "302" in (await refusal(server)).text


@asynccontextmanager
async def redirecting(
    tls: ssl.SSLContext | None = None, **answers: Any
) -> AsyncGenerator[tuple[HostileRegistry, HostileRegistry]]:
    """A registry that wants a password and redirects to another port, and who listens there."""

    async def target(_: web.Request) -> web.StreamResponse:
        return blob(**answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(status=307, headers={"Location": f"{other.url}/elsewhere?sig=%2F%2b"})

    async with HostileRegistry(target) as other, HostileRegistry(answer, tls=tls) as server:
        yield server, other


@on_loop
async def test_116_another_port_gets_no_secret_and_no_header() -> None:
    async with redirecting() as (server, other):
        host = Host(url=server.host.url, headers={"X-Host": ["1"], "Cookie": ["c=1"]})
        async with client(f"{server.place}/a:one", host, credentials=me, headers={"X-Client": "2"}) as registry:
            assert await fetched(registry, LAYER) == DATA
    assert {"X-Host", "X-Client", "Authorization"} <= server.asked[-1].headers.keys()
    [asked] = other.asked
    assert asked.path == "/elsewhere?sig=%2F%2b"
    assert not {"X-Host", "X-Client", "Authorization", "Cookie"} & asked.headers.keys()


@on_loop
async def test_116_another_scheme_gets_no_secret(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server", "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    async with redirecting(context) as (server, other):
        host = Host(url=server.host.url, tls=Tls(authorities=(authority.certificate,)))
        async with client(f"{server.place}/a:one", host, credentials=me) as registry:
            assert await fetched(registry, LAYER) == DATA
    assert server.asked[-1].secret
    assert [one.secret for one in other.asked] == [""]


@on_loop
async def test_116_the_way_back_from_another_host_has_no_secret() -> None:
    async def back(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"{server.url}/private"})

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/private":
            return blob()
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(status=307, headers={"Location": f"{other.url}/"})

    async with (
        HostileRegistry(back) as other,
        HostileRegistry(answer) as server,
        client(f"{server.place}/a:one", server.host, credentials=me) as registry,
    ):
        await fetched(registry, LAYER)
    assert server.asked[-1].path == "/private"
    assert not server.asked[-1].secret


@pytest.mark.parametrize("challenge", ["Basic realm=x", 'Bearer realm="{url}/token"'])
@on_loop
async def test_116_who_was_redirected_to_cannot_ask_for_secrets(challenge: str) -> None:
    async def target(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": challenge.format(url=other.url)})

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"{other.url}/"})

    async with HostileRegistry(target) as other, HostileRegistry(answer) as server:
        error = await refusal(server, credentials=me)
    assert isinstance(error, PermissionDenied)
    assert len(other.asked) == 1
    assert not any(secret in f"{one.headers}{one.path}{one.body!r}" for one in other.asked for secret in SECRETS)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://2130706433:{port}/", "http://0x7f.1:{port}/"],
)
@on_loop
async def test_116_a_policy_keeps_from_private_addresses_however_they_are_spelt(target: str) -> None:
    async def inner(_: web.Request) -> web.StreamResponse:
        return blob()

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": target.format(port=internal.port)})

    async with HostileRegistry(inner) as internal, HostileRegistry(answer) as server:
        error = await refusal(server, policy=Policy(deny_private=True))
        assert internal.asked == []
        if "is not a canonical IPv4 address" in error.text:
            return
        assert isinstance(error, PermissionDenied)
        assert "is a private address, where servers may not send to" in error.text
        async with client(f"{server.place}/a:one", server.host) as registry:
            assert await fetched(registry, LAYER) == DATA  # it would have answered


@on_loop
async def test_116_a_policy_leaves_the_registry_itself_alone() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/inside":
            return blob()
        return web.Response(status=302, headers={"Location": "/inside"})

    policy = Policy(deny_private=True)
    async with (
        HostileRegistry(answer) as server,
        client(f"{server.place}/a:one", server.host, policy=policy) as registry,
    ):
        assert await fetched(registry, LAYER) == DATA


@on_loop
async def test_116_an_address_in_a_descriptor_gets_no_secret_and_cannot_ask_for_one() -> None:
    async def foreign(_: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})

    async def answer(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return blob()

    async with HostileRegistry(foreign) as other, HostileRegistry(answer) as server:
        urls = [f"{other.url}/layer", "file:///etc/passwd", "no address", "http://127.0.0.1:1/"]
        entry = described(DATA, media.DOCKER_FOREIGN_GZIP, urls=urls)
        async with client(f"{server.place}/a:one", server.host, credentials=me, headers={"X": "1"}) as registry:
            assert await fetched(registry, entry) == DATA
    [asked] = other.asked
    assert not asked.secret
    assert "X" not in asked.headers


@on_loop
async def test_116_an_address_in_a_descriptor_is_bound_by_the_policy() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    async with HostileRegistry(answer) as other, HostileRegistry(answer) as server:
        entry = described(DATA, media.DOCKER_FOREIGN_GZIP, urls=[f"{other.url}/layer"])
        async with client(f"{server.place}/a:one", server.host, policy=Policy(deny_private=True)) as registry:
            with pytest.raises(PermissionDenied, match="private address"):
                await fetched(registry, entry)
    assert other.asked == []


@on_loop
async def test_116_thousands_of_addresses_in_a_descriptor_are_not_all_asked() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    async with HostileRegistry(answer) as other, HostileRegistry(answer) as server:
        entry = described(DATA, media.DOCKER_FOREIGN_GZIP, urls=[f"{other.url}/{number}" for number in range(5000)])
        async with client(f"{server.place}/a:one", server.host) as registry:
            with pytest.raises(NotFound):
                await fetched(registry, entry)
    assert len(other.asked) == 16


@pytest.mark.parametrize("policy", [Policy(), Policy(deny_private=True)])
@on_loop
async def test_an_upload_to_another_host_carries_no_secret(policy: Policy) -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        return web.Response(status=201)

    async def answer(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(status=202, headers={"Location": f"{other.url}/up?state=%2F"})

    async with (
        HostileRegistry(elsewhere) as other,
        HostileRegistry(answer) as server,
        client(f"{server.place}/a:one", server.host, credentials=me, policy=policy) as registry,
    ):
        if policy.deny_private:
            with pytest.raises(PermissionDenied, match="private address"):
                await registry.push_blob(LAYER, once(DATA))
            assert other.asked == []
            return
        assert await registry.push_blob(LAYER, once(DATA))
    [asked] = other.asked
    assert asked.path == f"/up?state=%2F&digest={LAYER.digest.replace(':', '%3A')}"
    assert asked.body == DATA
    assert not asked.secret


@pytest.mark.parametrize("location", ["file:///tmp/x", "", "http://[::1"])
@on_loop
async def test_an_upload_to_no_place_is_refused(location: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=202, headers={"Location": location})

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        with pytest.raises((PermissionDenied, Unknown), match=r"no http address|no place to upload"):
            await registry.push_blob(LAYER, once(DATA))


@on_loop
async def test_a_private_repository_cannot_be_mounted_from_and_the_blob_is_uploaded() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "mount" in request.query:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": "/up"})
        return web.Response(status=201)

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert await registry.push_blob(LAYER, once(DATA), mount_from="private")
    assert [one.method for one in server.asked] == ["POST", "POST", "PUT"]


@on_loop
async def test_a_proxy_of_the_environment_is_used_and_the_policy_holds_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith(LAYER.digest):
            return web.Response(status=302, headers={"Location": next(targets)})
        return blob()

    targets = iter(("http://cdn.test/x", "http://169.254.169.254/x"))
    async with HostileRegistry(answer) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "direct.test")
        host = Host(url="http://reg.test/v2")
        async with client("reg.test/a:one", host, policy=Policy(deny_private=True)) as registry:
            assert await fetched(registry, LAYER) == DATA
            with pytest.raises(PermissionDenied, match=r"169\.254\.169\.254 is a private address"):
                await fetched(registry, LAYER)
    assert [one.headers["Host"] for one in proxy.asked] == ["reg.test", "cdn.test", "reg.test"]


@on_loop
async def test_cookies_are_not_kept_and_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def answer(_: web.Request) -> web.StreamResponse:
        return blob(Set_Cookie="a=b; Path=/")

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        for _ in range(2):
            await fetched(registry, LAYER)
    assert not any({"Cookie", "Authorization"} & one.headers.keys() for one in server.asked)
