"""Who one is to a registry: given by the caller, or found in Docker's config file and its credential helpers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import InvalidArgument, Unavailable

HELPER_SECONDS: Final = 30.0
_END_SECONDS: Final = 5.0
_MAX_ANSWER: Final = 1 << 20
_TOKEN_USER: Final = "<token>"  # noqa: S105 - the name that helpers give where the secret is a token
_HUB: Final = "https://index.docker.io/v1/"
_HUB_NAMES: Final = ("index.docker.io", "docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and secret. Without a name the secret is a refresh token; `header` is sent as it is instead."""

    user: str = ""
    secret: str = ""
    header: str = ""

    def __bool__(self) -> bool:
        return bool(self.secret or self.header)

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, ...)"


Lookup = Callable[[str], Awaitable[Credentials | None]]
"""Gives the credentials for a host (with its port), None for none."""


async def nobody(_: str) -> Credentials | None:
    """Look nothing up."""
    return None


class DockerConfig:
    """Docker's `config.json`: `auths`, `credHelpers` and `credsStore`."""

    def __init__(self, path: Path | None = None, *, helper_seconds: float = HELPER_SECONDS) -> None:
        """Use this file; None means `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`."""
        self._seconds = helper_seconds
        folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
        self.path = path or folder / "config.json"

    async def __call__(self, host: str) -> Credentials | None:
        """Look a host up.

        Raises InvalidArgument for a file that is malformed, Unavailable for a helper that fails or hangs.
        """
        config = await asyncio.to_thread(self._read)
        key = _HUB if host in _HUB_NAMES else host
        helpers = {_bare(name): value for name, value in _table(config, "credHelpers").items()}
        helper = next((helpers[name] for name in _names(host) if name in helpers), "") or config.get("credsStore")
        if helper:
            found = await self._ask(str(helper), key)
            if found is not None:
                return found
        return self._stored(_table(config, "auths"), host)

    def _read(self) -> dict[str, Any]:
        try:
            config = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"credentials file '{self.path}' cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise InvalidArgument(f"credentials file '{self.path}' must hold an object")
        return config

    def _stored(self, auths: dict[str, Any], host: str) -> Credentials | None:
        for wanted in _names(host):
            # a name without a path comes before one with: it is the host's own
            for name in sorted(auths, key=len):
                if _bare(name) == wanted and isinstance(auths[name], dict):
                    return self._decoded(name, auths[name])
        return None

    def _decoded(self, name: str, entry: dict[str, Any]) -> Credentials | None:
        if token := entry.get("identitytoken"):
            return Credentials("", str(token))
        if token := entry.get("registrytoken"):
            return Credentials(header=f"Bearer {token}")
        try:
            both = base64.b64decode(str(entry.get("auth", "")), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidArgument(f"credentials file '{self.path}': auth of {name!r} is not base64") from error
        user, _, secret = both.rstrip("\0").partition(":")
        user, secret = user or str(entry.get("username", "")), secret or str(entry.get("password", ""))
        return Credentials(user, secret) if secret else None

    async def _ask(self, helper: str, key: str) -> Credentials | None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", helper):
            raise InvalidArgument(f"credentials file '{self.path}': helper {helper!r} must be a plain name")
        name = f"docker-credential-{helper}"
        work = _Helper()
        try:
            transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: work, name, "get", stderr=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise Unavailable(f"credential helper {name!r} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._seconds):
                answer = await work.ask(transport, key)
        except TimeoutError:
            raise Unavailable(f"credential helper {name!r} did not answer within {self._seconds:g} seconds") from None
        finally:
            await work.end(transport)
        if len(answer) > _MAX_ANSWER:
            raise Unavailable(f"credential helper {name!r} answered with more than {_MAX_ANSWER} bytes")
        return self._answered(name, transport.get_returncode() or 0, answer)

    def _answered(self, name: str, status: int, answer: bytes) -> Credentials | None:
        text = answer.decode(errors="replace").strip()
        if status:
            if "credentials not found" in text:
                return None
            raise Unavailable(f"credential helper {name!r} failed with status {status}: {text[:200]}")
        try:
            found = json.loads(text)
            user, secret = str(found["Username"]), str(found["Secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"credential helper {name!r} answered what is no credential") from error
        return Credentials("" if user == _TOKEN_USER else user, secret)


class _Helper(asyncio.SubprocessProtocol):
    """A credential helper at work: its answer is whole when it has ended and nobody holds its output any more."""

    def __init__(self) -> None:
        self._answer = bytearray()
        self._whole = asyncio.Event()
        self._exited = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._answer += data
        if len(self._answer) > _MAX_ANSWER:
            self._whole.set()

    def process_exited(self) -> None:
        self._exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._whole.set()

    async def ask(self, transport: asyncio.SubprocessTransport, key: str) -> bytes:
        """Give the helper the name and its answer, to its end or what is too much."""
        pipe = transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        pipe.write(key.encode())
        pipe.close()
        await self._whole.wait()
        return bytes(self._answer)

    async def end(self, transport: asyncio.SubprocessTransport) -> None:
        """See it off with all that it started and that may hold its pipes."""
        if not (self._exited.is_set() and self._whole.is_set()):
            with suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
        transport.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._exited.wait()


def _names(host: str) -> tuple[str, ...]:
    """The names under which a host may be stored: Docker Hub has several."""
    return _HUB_NAMES if host in _HUB_NAMES else (host,)


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _bare(name: str) -> str:
    """A host as it is compared: config files also name it by URL."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]
