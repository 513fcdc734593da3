"""The TCP listener: who may connect, with which certificates, and how bad settings are named."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import rawhttp2
from harness import (
    VERSION,
    fails,
    on_loop,
    outcome_of,
    program,
    running,
    version,
)
from moored.kernel.ports.daemon import (
    Outcome,
)

TCP = "io.containerd.server.v1.grpc-tcp"


@dataclass
class Authority:
    """Certificates made by openssl, once for all tests."""

    folder: Path

    async def make(self) -> None:
        await self._openssl("req", "-x509", *self._key("ca"), "-subj", "/CN=ca", "-days", "2")
        for name, common_name in (("server", "moored"), ("alice", "alice"), ("bob", "bob")):
            await self._openssl("req", *self._key(name), "-subj", f"/CN={common_name}", "-new")
            extensions = self.folder / "san"
            extensions.write_text("subjectAltName=DNS:moored,IP:127.0.0.1")
            signing = ("-CA", self.pem("ca"), "-CAkey", self.key("ca"), "-CAcreateserial", "-days", "2")
            request = ("-in", self.pem(name), "-out", self.pem(name), "-extfile", extensions)
            await self._openssl("x509", "-req", *signing, *request)
        await self._openssl("req", "-x509", *self._key("stranger"), "-subj", "/CN=alice", "-days", "2")

    def _key(self, name: str) -> tuple[Any, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*curve, "-keyout", self.key(name), "-out", self.pem(name))

    async def _openssl(self, *args: Any) -> None:
        status, output = await program("openssl", *args)
        assert status == 0, output

    def pem(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def config(self, **more: Any) -> dict[str, Any]:
        own = {"tls_cert": str(self.pem("server")), "tls_key": str(self.key("server"))}
        return {"address": "127.0.0.1:0", **own, **more}

    def channel(self, address: str, name: str = "") -> grpc.aio.Channel:
        identity = {}
        if name:
            pair = self.key(name).read_bytes(), self.pem(name).read_bytes()
            identity = {"private_key": pair[0], "certificate_chain": pair[1]}
        credentials = grpc.ssl_channel_credentials(self.pem("ca").read_bytes(), **identity)
        return grpc.aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = Authority(tmp_path_factory.mktemp("ca"))
    asyncio.run(made.make())
    return made


@on_loop
async def test_tcp_without_address_is_skipped(tmp_path: Path) -> None:
    assert await outcome_of(tmp_path, TCP, VERSION) == (Outcome.SKIPPED, "no address configured")


@on_loop
async def test_tcp_on_loopback_needs_no_tls_and_tells_its_real_port(tmp_path: Path) -> None:
    async with running(tmp_path, TCP, VERSION, configs={TCP: {"address": "127.0.0.1:0"}}) as world:
        address = world.address(TCP)
        assert not address.endswith(":0")
        async with grpc.aio.insecure_channel(address) as channel:
            assert await version(channel) == "0.0.1-test"


@pytest.mark.parametrize("address", ["0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:7700", "example.org:7700"])
@on_loop
async def test_tcp_open_to_other_hosts_needs_tls(tmp_path: Path, address: str) -> None:
    outcome, reason = await outcome_of(tmp_path, TCP, VERSION, address=address)
    assert outcome is Outcome.FAILED
    assert repr(address) in reason
    assert "needs tls_cert and tls_key" in reason


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "::1:80"])
@on_loop
async def test_tcp_address_must_be_host_and_port(tmp_path: Path, address: str) -> None:
    outcome, reason = await outcome_of(tmp_path, TCP, VERSION, address=address)
    assert outcome is Outcome.FAILED
    assert f"address {address!r} must look like" in reason


@on_loop
async def test_taken_tcp_port_is_named_with_the_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome, reason = await outcome_of(tmp_path, TCP, VERSION, address=f"127.0.0.1:{port}")
    assert outcome is Outcome.FAILED
    assert f"cannot listen on '127.0.0.1:{port}': address already in use" in reason


@on_loop
async def test_tls_serves_clients_that_trust_the_authority(tmp_path: Path, authority: Authority) -> None:
    async with running(tmp_path, TCP, VERSION, configs={TCP: authority.config()}) as world:
        async with authority.channel(world.address(TCP)) as channel:
            assert await version(channel) == "0.0.1-test"
        async with grpc.aio.insecure_channel(world.address(TCP)) as plain:
            assert (await fails(version(plain)))[0] == "UNAVAILABLE"


async def tls_streams(
    authority: Authority, address: str, protocols: list[str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection through TLS that offers these protocols for what is inside."""
    context = ssl.create_default_context(cafile=str(authority.pem("ca")))
    if protocols:
        context.set_alpn_protocols(protocols)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), ssl=context)


@pytest.mark.parametrize("protocols", [[], ["http/1.1"]])
@on_loop
async def test_tls_client_that_does_not_offer_http2_is_sent_away(
    tmp_path: Path, authority: Authority, protocols: list[str]
) -> None:
    async with running(tmp_path, TCP, VERSION, configs={TCP: authority.config()}) as world:
        reader, writer = await tls_streams(authority, world.address(TCP), protocols)
        writer.write(rawhttp2.PREFACE + rawhttp2.settings())
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@on_loop
async def test_tls_client_that_breaks_the_rules_is_told_why(tmp_path: Path, authority: Authority) -> None:
    async with running(tmp_path, TCP, VERSION, configs={TCP: authority.config()}) as world:
        reader, writer = await tls_streams(authority, world.address(TCP), ["h2"])
        found = rawhttp2.Session(reader, writer)
        wrong = rawhttp2.frame(rawhttp2.WINDOW, payload=bytes(4))
        found.send(rawhttp2.PREFACE, rawhttp2.settings(), *[wrong, rawhttp2.frame(rawhttp2.PING)] * 2000)
        assert await found.broken() == rawhttp2.PROTOCOL_ERROR
        assert found.goaway == (0, rawhttp2.PROTOCOL_ERROR, "window update of nothing")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@on_loop
async def test_tls_with_authority_takes_only_clients_signed_by_it(tmp_path: Path, authority: Authority) -> None:
    config = authority.config(tls_ca=str(authority.pem("ca")))
    async with running(tmp_path, TCP, VERSION, configs={TCP: config}) as world:
        async with authority.channel(world.address(TCP), "bob") as channel:
            assert await version(channel) == "0.0.1-test"
        for name in ("", "stranger"):
            async with authority.channel(world.address(TCP), name) as channel:
                assert (await fails(version(channel)))[0] == "UNAVAILABLE"


@on_loop
async def test_tls_common_name_is_asked_of_the_client(tmp_path: Path, authority: Authority) -> None:
    config = authority.config(tls_ca=str(authority.pem("ca")), tls_common_name="alice")
    async with running(tmp_path, TCP, VERSION, configs={TCP: config}) as world:
        async with authority.channel(world.address(TCP), "alice") as channel:
            assert await version(channel) == "0.0.1-test"
        async with authority.channel(world.address(TCP), "bob") as channel:
            code, text = await fails(version(channel))
    assert code == "UNAUTHENTICATED"
    assert "'bob'" in text
    assert "'alice'" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tls_cert": "/no/cert.pem"}, "tls_cert '/no/cert.pem' cannot be read: no such file"),
        ({"tls_key": "/no/key.pem"}, "tls_key '/no/key.pem' cannot be read: no such file"),
        ({"tls_ca": "/no/ca.pem"}, "tls_ca '/no/ca.pem' cannot be read: no such file"),
        ({"tls_key": ""}, "tls_cert is set and needs tls_key"),
        ({"tls_cert": ""}, "tls_key is set and needs tls_cert"),
        ({"tls_cert": "", "tls_key": "", "tls_ca": "x"}, "tls_ca is set and needs tls_cert and tls_key"),
        ({"tls_common_name": "x"}, "tls_common_name is set and needs tls_ca"),
        ({"tls_key": "ALICE"}, "are no usable pair"),
        ({"tls_cert": "JUNK"}, "are no usable pair"),
        ({"tls_ca": "JUNK"}, "holds no certificates in PEM form"),
    ],
)
@on_loop
async def test_bad_tls_settings_are_named(
    tmp_path: Path, authority: Authority, change: dict[str, str], says: str
) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    names = {"ALICE": str(authority.key("alice")), "JUNK": str(junk)}
    config = authority.config(**{key: names.get(value, value) for key, value in change.items()})
    outcome, reason = await outcome_of(tmp_path, TCP, VERSION, **config)
    assert outcome is Outcome.FAILED
    assert says in reason
