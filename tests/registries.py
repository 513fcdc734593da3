"""Real registries for tests: docker-registry with TLS, passwords or tokens, a token server, and small images."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from moored.api.registry.client import Registry
from moored.api.registry.hosts import Host
from moored.api.registry.settings import Limits, Settings
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.references import parse

DOCKER_REGISTRY = "/usr/bin/docker-registry"
START_SECONDS = 20.0
PASSWORD = "secret"
HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
"""User `me`, password `secret`."""
QUICK = Limits(header=2.0, dial=2.0, stall=1.0, progress=1.0, least=1024, retry_after=1.0)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# --- certificates -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority with its files below a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test authority {name}")])
        self.certificate = self._write(f"{name}.crt", self._signed(self._name, self._key, authority=True))

    def pair(self, name: str, *hosts: str) -> Pair:
        """Make a certificate for a server at these hosts, or for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._write(f"{name}.cert", self._signed(subject, key, hosts))
        file = self._folder / f"{name}.key"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Pair(certificate, file)

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        file = self._folder / name
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        hosts: tuple[str, ...] = (),
        *,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


# --- docker-registry ----------------------------------------------------------------------------------------------


class DockerRegistry:
    """One docker-registry process on 127.0.0.1 with its data below a folder. A context manager."""

    def __init__(
        self, folder: Path, *, http: Mapping[str, object] | None = None, auth: Mapping[str, object] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = folder / "log"
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.address, "secret": "test", **(http or {})},
        }
        if auth:
            config["auth"] = auth
        (folder / "config.yml").write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [DOCKER_REGISTRY, "serve", str(self.folder / "config.yml")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            assert self._process.poll() is None, f"docker-registry ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"docker-registry is not up:\n{self.log()}"
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        """What it has logged so far, requests too."""
        return self._log.read_text()

    def host(self, **more: Any) -> Host:
        """It as a host to ask over plain http."""
        return Host(url=f"http://{self.address}/v2", **more)

    def file(self, digest: str) -> Path:
        """Where it keeps a blob."""
        algorithm, _, text = digest.partition(":")
        return self.folder / "data/docker/registry/v2/blobs" / algorithm / text[:2] / text / "data"


def htpasswd(folder: Path) -> Mapping[str, object]:
    """Settings for a registry that wants user `me` with PASSWORD."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "htpasswd"
    file.write_text(HTPASSWD)
    return {"htpasswd": {"realm": "test", "path": str(file)}}


# --- tokens -------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """One request for a token."""

    method: str
    scopes: list[str]
    form: Mapping[str, str]
    authorization: str
    headers: Mapping[str, str]


@dataclass
class TokenServer:
    """Gives tokens that a docker-registry accepts, to user `me` with PASSWORD, or to anybody for pulling.

    post_status   what POST is answered with instead of a token
    An async context manager; `auth` are the registry's settings.
    """

    folder: Path
    post_status: int = 0
    expires_in: int = 300
    asked: list[Asked] = field(default_factory=list)
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pair = Authority(self.folder, "issuer").pair("tokens")

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    @property
    def auth(self) -> Mapping[str, object]:
        bundle = str(self._pair.certificate)
        return {"token": {"realm": self.realm, "service": "test", "issuer": "tester", "rootcertbundle": bundle}}

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/token", self._get)
        app.router.add_post("/token", self._post)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _get(self, request: web.Request) -> web.Response:
        scopes = request.query.getall("scope", [])
        given = request.headers.get("Authorization", "")
        self.asked.append(Asked("GET", scopes, dict(request.query), given, request.headers))
        if given:
            user, _, secret = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
            if (user, secret) != ("me", PASSWORD):
                return web.Response(status=401)
        return web.json_response({"token": self.token(scopes, pull_only=not given), "expires_in": self.expires_in})

    async def _post(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        scopes = form.get("scope", "").split()
        self.asked.append(Asked("POST", scopes, form, request.headers.get("Authorization", ""), request.headers))
        if self.post_status:
            return web.Response(status=self.post_status)
        known = form.get("refresh_token") == "refresh" or (form.get("username"), form.get("password")) == (
            "me",
            PASSWORD,
        )
        if not known:
            return web.Response(status=401)
        return web.json_response({"access_token": self.token(scopes), "expires_in": self.expires_in})

    def token(self, scopes: list[str], *, pull_only: bool = False) -> str:
        """A signed token for these scopes."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [action for action in actions.split(",") if action == "pull" or not pull_only]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": "tester",
            "sub": "me",
            "aud": "test",
            "exp": now + self.expires_in,
            "nbf": now - 10,
            "iat": now,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        signed = f"{_base64({'typ': 'JWT', 'alg': 'ES256', 'x5c': [self._chain]})}.{_base64(claims)}"
        one, other = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encoded(one.to_bytes(32, 'big') + other.to_bytes(32, 'big'))}"

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self._pair.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    @cached_property
    def _chain(self) -> str:
        certificate = x509.load_pem_x509_certificate(self._pair.certificate.read_bytes())
        return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


def _base64(value: object) -> str:
    return _encoded(json.dumps(value, separators=(",", ":")).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# --- images -------------------------------------------------------------------------------------------------------


def described(data: bytes, media_type: str, **more: Any) -> Entry:
    """The descriptor of some bytes."""
    return Entry(media_type=media_type, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data), **more)


@dataclass(frozen=True)
class Image:
    """A small image: config, one layer of random bytes, manifest."""

    layer: bytes
    config: bytes = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'

    @classmethod
    def of(cls, size: int) -> Image:
        """An image that no other is."""
        return cls(os.urandom(size))

    @cached_property
    def layer_entry(self) -> Entry:
        return described(self.layer, f"{media.OCI_LAYER}+gzip")

    @cached_property
    def config_entry(self) -> Entry:
        return described(self.config, media.OCI_CONFIG)

    @cached_property
    def manifest(self) -> bytes:
        def json_of(entry: Entry) -> dict[str, object]:
            return {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}

        document = {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "config": json_of(self.config_entry),
            "layers": [json_of(self.layer_entry)],
        }
        return json.dumps(document).encode()

    @cached_property
    def entry(self) -> Entry:
        return described(self.manifest, media.OCI_MANIFEST)

    async def push(self, registry: Registry, tag: str = "") -> None:
        """Push it whole."""
        await registry.push_blob(self.layer_entry, once(self.layer))
        await registry.push_blob(self.config_entry, once(self.config))
        await registry.push_manifest(self.entry, self.manifest, tag or registry.reference.tag)


def once(data: bytes, piece: int = 1 << 16) -> Any:
    """A source of these bytes."""

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(data), piece):
            await asyncio.sleep(0)
            yield data[at : at + piece]

    return source


def client(name: str, *hosts: Host, **settings: Any) -> Registry:
    """A client for an image's name at some hosts, with small limits unless others are given."""
    return Registry(parse(name), hosts, Settings(**{"limits": QUICK, **settings}))


async def fetched(registry: Registry, entry: Entry, start: int = 0, end: int | None = None) -> bytes:
    """All bytes of an object."""
    return b"".join([piece async for piece in registry.fetch(entry, start, end)])
