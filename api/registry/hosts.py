"""Where the images of a registry are asked for: `hosts.toml` and `certs.d` folders, and the defaults without them.

Source: contracts/semantics.md 7; containerd's docs/hosts.md for the file's keys.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from moored.kernel.duration import Duration
from moored.kernel.errors import InvalidArgument

log = logging.getLogger("moored.registry")

PULL, RESOLVE, PUSH, REFERRERS = "pull", "resolve", "push", "referrers"
ALL_CAPABILITIES: Final = frozenset({PULL, RESOLVE, PUSH, REFERRERS})

_ALIASES: Final = {"docker.io": "registry-1.docker.io"}
_MAX_FILE: Final = 1 << 20
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a host's certificate is checked and what is shown to it: paths of PEM files."""

    authorities: tuple[Path, ...] = ()
    pairs: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False

    def context(self) -> ssl.SSLContext:
        """Make the context; reads files. Raises InvalidArgument naming a file that cannot be used."""
        context = ssl.create_default_context()
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for path in self.authorities:
            with _naming(path):
                context.load_verify_locations(path)
        for certificate, key in self.pairs:
            with _naming(certificate):
                context.load_cert_chain(certificate, key)
        return context


class _naming:  # noqa: N801 - reads as a statement
    """Turns what reading a PEM file raises into InvalidArgument with the file's name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, ssl.SSLError)):
            raise InvalidArgument(f"certificate file '{self._path}' cannot be used: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One place to ask. url is the base of the API without a slash at its end, `https://mirror:5000/v2`.

    namespace      the registry that the host answers for, sent as `?ns=`; empty where the host is that registry
    fall_back      try plain http where the host does not speak TLS
    dial_timeout   seconds to connect, None for the client's own
    """

    url: str
    capabilities: frozenset[str] = ALL_CAPABILITIES
    tls: Tls = Tls()
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    namespace: str = ""
    fall_back: bool = False
    dial_timeout: float | None = None

    @property
    def address(self) -> str:
        """Host and port, as credentials and tokens are kept by."""
        return urlsplit(self.url).netloc


def hosts_of(
    registry: str, *, folders: Sequence[Path] = (), default_scheme: str = "", strict: bool = False
) -> list[Host]:
    """Give the hosts for a registry (`docker.io`, `localhost:5000`) in the order to ask them.

    folders   hosts folders, each holding `HOST_PORT_`, `HOST:PORT` or `_default`; the first folder that has one decides
    default_scheme   `http` asks registries that are not configured over plain http, without trying TLS
    strict    a hosts.toml that is malformed, or has a key that is not known, is an error; otherwise the log tells, and
              the file counts as absent, or the key does
    Reads files. Raises InvalidArgument for a folder that cannot be read, and as `strict` says.
    """
    names = _folder_names(registry)
    for root in folders:
        for name in names:
            if _is_folder(root / name):
                return _from_folder(registry, root / name, default_scheme, strict=strict)
    return [_default(registry, default_scheme)]


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InvalidArgument(f"hosts folder '{path}' cannot be read: {error.strerror}") from error


def _folder_names(registry: str) -> list[str]:
    if "/" in registry or registry in {"", ".", ".."}:
        raise InvalidArgument(f"registry {registry!r} must be a host, with a port or without")
    host, colon, port = registry.rpartition(":")
    names = [f"{host}_{port}_", registry] if colon and port.isdigit() else [registry]
    return [*names, "_default"]


def _default(registry: str, default_scheme: str) -> Host:
    host = _ALIASES.get(registry, registry)
    namespace = "" if registry in {host, "docker.io"} else registry
    if default_scheme:
        return Host(url=f"{default_scheme}://{host}/v2", namespace=namespace)
    name, port = _split_port(host)
    if port and _is_local(name):
        if port == "80":
            return Host(url=f"http://{host}/v2", namespace=namespace)
        tls = Tls(skip_verify=True)
        return Host(url=f"https://{host}/v2", namespace=namespace, tls=tls, fall_back=port != "443")
    return Host(url=f"https://{host}/v2", namespace=namespace)


def _split_port(host: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]+))?", host)
    return (match[1].strip("[]"), match[2] or "") if match else (host, "")


def _is_local(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _from_folder(registry: str, folder: Path, default_scheme: str, *, strict: bool) -> list[Host]:
    file = folder / "hosts.toml"
    try:
        text = _text(file)
        if text:
            return _from_table(registry, _table(text, file), file, default_scheme, strict=strict)
    except InvalidArgument as error:
        if strict:
            raise
        log.error("hosts file is not used: %s", error.text)  # noqa: TRY400 - what is wrong is said
    return [_from_certificates(registry, folder, default_scheme)]


def _text(file: Path) -> bytes:
    """Read a hosts file, empty where there is none."""
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InvalidArgument(f"'{file}' cannot be read: {error.strerror}") from error
    if len(text) > _MAX_FILE:
        raise InvalidArgument(f"'{file}' has more than {_MAX_FILE} bytes")
    return text


def _table(text: bytes, file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidArgument(f"'{file}' is no TOML: {error}") from error


def _from_certificates(registry: str, folder: Path, default_scheme: str) -> Host:
    """The older form: a folder of `*.crt` authorities and `*.cert` with `*.key` pairs."""
    try:
        names = sorted(path for path in folder.iterdir() if not path.is_dir())
    except OSError as error:
        raise InvalidArgument(f"hosts folder '{folder}' cannot be read: {error.strerror}") from error
    keys = {path for path in names if path.suffix == ".key"}
    pairs = []
    for certificate in (path for path in names if path.suffix == ".cert"):
        key = certificate.with_suffix(".key")
        pairs.append((certificate, key if key in keys else None))
    host = _default(registry, default_scheme)
    authorities = tuple(path for path in names if path.suffix == ".crt")
    return _tls_first(replace(host, tls=replace(host.tls, authorities=authorities, pairs=tuple(pairs))))


def _from_table(
    registry: str, table: Mapping[str, Any], file: Path, default_scheme: str, *, strict: bool
) -> list[Host]:
    reader = _Reader(file, strict=strict)
    found = [reader.host(url, settings, registry) for url, settings in reader.table(table, "host").items()]
    own = {key: value for key, value in table.items() if key not in {"host", "server"}}
    upstream = _default(registry, default_scheme)
    last = reader.host(reader.text(table, "server") or upstream.url, own, registry)
    if not reader.text(table, "server"):
        skip = last.tls.skip_verify if "skip_verify" in own else upstream.tls.skip_verify
        tls = replace(last.tls, skip_verify=skip)
        last = _tls_first(replace(last, url=upstream.url, tls=tls, fall_back=upstream.fall_back))
    return [*found, last]


def _tls_first(host: Host) -> Host:
    """A host of scheme http for which TLS is set up is asked over TLS, and then over http if it speaks none."""
    parts = urlsplit(host.url)
    if parts.scheme != "http" or host.tls == Tls() or parts.port == 80:
        return host
    return replace(host, url=host.url.replace("http://", "https://", 1), fall_back=True)


class _Reader:
    """Reads values of one hosts.toml; errors, and warnings unless `strict`, name the file and the key."""

    _KEYS: Final = frozenset({"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"})

    def __init__(self, file: Path, *, strict: bool) -> None:
        self._file = file
        self._strict = strict

    def host(self, url: str, settings: Any, registry: str) -> Host:
        """Make one host of its table."""
        if not isinstance(settings, dict):
            raise self._wrong(f"host.{url!r}", "a table")
        for key in sorted(settings.keys() - self._KEYS):
            unknown = self._wrong(f"key {key!r}", f"one of {sorted(self._KEYS)}")
            if self._strict:
                raise unknown
            log.warning("key is ignored: %s", unknown.text)
        base = self._url(url, override=self._flag(settings, "override_path"))
        address = urlsplit(base).netloc
        same = address in {registry, _ALIASES.get(registry, registry)}
        host = Host(
            url=base,
            capabilities=self._capabilities(settings),
            tls=Tls(
                authorities=tuple(self._paths(settings, "ca")),
                pairs=tuple(self._pairs(settings)),
                skip_verify=self._flag(settings, "skip_verify"),
            ),
            headers=self._headers(settings),
            namespace="" if same else registry,
            dial_timeout=self._seconds(settings),
        )
        return _tls_first(host)

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """Give a sub-table, empty where there is none."""
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "a table")
        return value

    def text(self, table: Mapping[str, Any], key: str) -> str:
        """Give a text, empty where there is none."""
        value = table.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def _url(self, url: str, *, override: bool) -> str:
        try:
            parts = urlsplit(url if "://" in url else f"https://{url}")
            good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or not url.isprintable() or " " in url:
            raise self._wrong(repr(url), "a URL of scheme http or https")
        path = parts.path.rstrip("/")
        if not override and not path.endswith("/v2"):
            path += "/v2"
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))

    def _capabilities(self, table: Mapping[str, Any]) -> frozenset[str]:
        found = table.get("capabilities")
        if found is None:
            return ALL_CAPABILITIES
        names = [name.lower() for name in self._texts(found, "capabilities", several=True)]
        if unknown := sorted(set(names) - ALL_CAPABILITIES):
            raise self._wrong(f"capability {unknown[0]!r}", f"one of {sorted(ALL_CAPABILITIES)}")
        return frozenset(names) or ALL_CAPABILITIES

    def _paths(self, table: Mapping[str, Any], key: str) -> list[Path]:
        return [self._file.parent / name for name in self._texts(table.get(key, []), key)]

    def _pairs(self, table: Mapping[str, Any]) -> Iterable[tuple[Path, Path | None]]:
        value = table.get("client", [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise self._wrong("client", "a path, a list of paths or a list of pairs")
        for item in items:
            if isinstance(item, str):
                yield self._file.parent / item, None
                continue
            names = self._texts(item, "client")
            if len(names) != 2:
                raise self._wrong("client", "a path, or a certificate and its key")
            yield self._file.parent / names[0], (self._file.parent / names[1] if names[1] else None)

    def _headers(self, table: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        found = {name: self._texts(value, f"header.{name}") for name, value in self.table(table, "header").items()}
        for name, values in found.items():
            if not _HEADER_NAME.fullmatch(name):
                raise self._wrong(f"header {name!r}", "named by letters, digits and hyphens")
            if not all(value.isprintable() for value in values):
                raise self._wrong(f"header.{name}", "without control characters")
        return found

    def _texts(self, value: Any, key: str, *, several: bool = False) -> list[str]:
        items = [value] if isinstance(value, str) and not several else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "a text or a list of texts")
        return items

    def _flag(self, table: Mapping[str, Any], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def _seconds(self, table: Mapping[str, Any]) -> float | None:
        value = table.get("dial_timeout", "")
        if value == "":
            return None
        try:
            seconds = float(Duration.parse(value))
        except (AttributeError, TypeError, ValueError):
            seconds = 0.0
        if seconds <= 0:
            raise self._wrong("dial_timeout", "a duration above 0 such as '5s'")
        return seconds

    def _wrong(self, key: str, wanted: str) -> InvalidArgument:
        return InvalidArgument(f"'{self._file}': {key} must be {wanted}")
