"""How a shim is called and what it answers, in every form since containerd 1.6. Source: `contracts/shim-v2.md` 2, 3."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import InvalidArgument, Unimplemented, Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.shims import Endpoint
from moored.plugins.runtime.manager.bundle import Bundle
from moored.plugins.runtime.shim.address import DEFAULT_FOLDER, socket_path

NEWEST: Final = 3
"""The latest version of the task service that there is."""
OLDEST: Final = 2
_ADDRESS: Final = re.compile(r"(?:[a-z]+://|/)[!-~]{1,4096}")
"""A scheme and a place, or an abstract name; shims that say anything else have failed to say it."""
_LEVELS: Final = {logging.DEBUG: -4, logging.INFO: 0, logging.WARNING: 4, logging.ERROR: 8, logging.CRITICAL: 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What shims are told of the daemon: its sockets, the program that publishes events for them, its version.

    environment  further variables, NAME=VALUE
    socket_dir   where they are to put their sockets
    """

    grpc: str
    ttrpc: str
    binary: str
    version: str
    socket_dir: Path
    environment: Sequence[str] = ()

    def socket(self, namespace: str, group: str) -> str:
        """Give the path of a shim's socket, the same for all containers of a group."""
        return socket_path(str(self.socket_dir), self.grpc, namespace, group)

    def sockets(self, namespace: str, group: str) -> list[str]:
        """Give every path where a shim may listen that was not asked yet."""
        return [self.socket(namespace, group), socket_path(DEFAULT_FOLDER, self.grpc, namespace, group)]


def command(binary: Path, daemon: Daemon, bundle: Bundle, action: str) -> list[str]:
    """Give the command line of `start` or `delete`."""
    words = [str(binary), "-namespace", bundle.namespace, "-address", daemon.grpc]
    words += ["-publish-binary", daemon.binary, "-id", bundle.id]
    if action == "delete":
        words += ["-bundle", str(bundle.path)]
    if debugging():
        words.append("-debug")
    return [*words, action]


def debugging() -> bool:
    """Whether the daemon logs what is of use to developers only."""
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def environment(daemon: Daemon, namespace: str, base: Mapping[str, str], *, start: bool) -> dict[str, str]:
    """Give the variables for a call of a shim, `base` being the daemon's own."""
    more = dict(one.partition("=")[::2] for one in daemon.environment) if start else {}
    return {
        **base,
        "GOMAXPROCS": "2",
        "MAX_SHIM_VERSION": "2",
        "TTRPC_ADDRESS": daemon.ttrpc,
        "GRPC_ADDRESS": daemon.grpc,
        "NAMESPACE": namespace,
        **more,
    }


def parameters(daemon: Daemon, namespace: str, id_: str, options: TypedBytes | None) -> bytes:
    """Give the standard input of `start` since 2.3."""
    from moored.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams

    level = logging.getLogger().getEffectiveLevel()
    params = BootstrapParams(
        instance_id=id_,
        namespace=namespace,
        log_level=max((value for known, value in _LEVELS.items() if known <= level), default=-8),  # type: ignore[arg-type]
        containerd_version=daemon.version,
        containerd_ttrpc_address=daemon.ttrpc,
        containerd_grpc_address=daemon.grpc,
        containerd_binary=daemon.binary,
        socket_dir=str(daemon.socket_dir),
    )
    if options is not None:
        params.extensions.add().value.MergeFrom(_any(options))
    return params.SerializeToString()


def old_parameters(options: TypedBytes | None) -> bytes:
    """Give the standard input of `start` before 2.3."""
    return b"" if options is None else _any(options).SerializeToString()


def _any(options: TypedBytes) -> Any:
    from google.protobuf.any_pb2 import Any as AnyMessage

    return AnyMessage(type_url=options.type_url, value=options.value)


def parse_answer(output: bytes) -> Endpoint:
    """Read what `start` wrote: BootstrapResult, JSON, or the bare address.

    Raises Unimplemented for a version above 3, Unknown for what names no address or protocol.
    """
    endpoint = _from_message(output) or _from_text(output.strip())
    if endpoint.version > NEWEST:
        raise Unimplemented(f"unsupported shim version ({endpoint.version})")
    if endpoint.protocol not in {"ttrpc", "grpc"}:
        raise Unknown(f'unexpected protocol: "{endpoint.protocol}"')
    if not _ADDRESS.fullmatch(endpoint.address):
        raise Unknown(f"shim answered {output[:200]!r}, wanted an address")
    return endpoint


def _from_message(output: bytes) -> Endpoint | None:
    from google.protobuf.message import DecodeError

    from moored.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapResult

    try:
        found = BootstrapResult.FromString(output)
    except DecodeError:
        return None
    # texts can parse by chance, as fields that do not exist
    if not found.address:
        return None
    return Endpoint(found.address, found.version or OLDEST, found.protocol.lower())


def _from_text(text: bytes) -> Endpoint:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict):
        version, address = found.get("version", 0), found.get("address", "")
        if isinstance(version, int) and version >= OLDEST and isinstance(address, str):
            return Endpoint(address, version, str(found.get("protocol", "")).lower())
    return Endpoint(text.decode("utf-8", "backslashreplace"), OLDEST, "ttrpc")


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """Give the text of bootstrap.json."""
    return json.dumps(
        {"version": endpoint.version, "address": endpoint.address, "protocol": endpoint.protocol}
    ).encode()


def sandbox_endpoint(address: str, version: int) -> Endpoint:
    """Read the address of a sandbox' task service, `ttrpc+unix://PATH`. Raises InvalidArgument."""
    protocol, plus, rest = address.partition("+")
    if not plus:
        raise InvalidArgument(f"sandbox address is {address!r}, wanted PROTOCOL+ADDRESS as in ttrpc+unix:///run/s")
    return Endpoint(rest, version, protocol.lower())
