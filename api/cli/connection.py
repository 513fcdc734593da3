"""One daemon at the other end of a unix socket; every failure becomes an error of the set that says what to do next."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
from google.protobuf import empty_pb2

from moored.api.cli import records
from moored.api.cli.settings import Settings
from moored.api.moored.daemon.v1 import daemon_pb2, daemon_pb2_grpc
from moored.api.services.version.v1 import version_pb2, version_pb2_grpc
from moored.kernel.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MooredError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Unknown,
)

MAX_MESSAGE = 16 << 20
"""Bytes; the same limit that daemons of this API have."""

START = "is the daemon running? start it with: moored -c /etc/moored/config.toml"

R = TypeVar("R")


class Daemon:
    """The calls that commands make, one each, all of them reads.

    Errors: NotFound (no socket), PermissionDenied, Unavailable (nobody answers), DeadlineExceeded, Unimplemented (it is
    not moored), InvalidArgument (the path cannot be a socket's), Unknown (the daemon's own error). Blocks for
    `Settings.timeout` at most.
    """

    def __init__(self, channel: grpc.Channel, settings: Settings) -> None:
        self._channel = channel
        self._settings = settings

    def plugins(self) -> list[records.Plugin]:
        """Every plugin, in the order of start."""
        reply = self._ask(daemon_pb2_grpc.DaemonStub(self._channel).Plugins, daemon_pb2.PluginsRequest())
        return [records.plugin(message) for message in reply.plugins]

    def config(self) -> records.Effective:
        """The configuration in force."""
        return records.effective(
            self._ask(daemon_pb2_grpc.DaemonStub(self._channel).Config, daemon_pb2.ConfigRequest())
        )

    def check(self) -> records.Check:
        """What the files on disk would change."""
        return records.check(self._ask(daemon_pb2_grpc.DaemonStub(self._channel).Check, daemon_pb2.CheckRequest()))

    def version(self) -> version_pb2.VersionResponse:
        """Version and revision of the daemon, be it moored or containerd."""
        return self._ask(version_pb2_grpc.VersionStub(self._channel).Version, empty_pb2.Empty())

    def _ask(self, method: Callable[..., R], request: Any) -> R:
        try:
            return method(request, timeout=self._settings.timeout)
        except grpc.RpcError as error:
            raise _told(error, self._settings) from error


@contextmanager
def connect(settings: Settings) -> Generator[Daemon]:
    """A daemon to ask, until the block ends; the socket is first touched by a call."""
    target = f"unix:{quote(settings.address)}"
    options = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)]
    with grpc.insecure_channel(target, options=options) as channel:
        yield Daemon(channel, settings)


def _told(error: grpc.RpcError, settings: Settings) -> MooredError:
    assert isinstance(error, grpc.Call)
    address, details = settings.address, error.details() or "no details"
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return _unreachable(address) or Unavailable(f"the daemon at {address} broke off: {details}; try again")
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(f"the daemon at {address} is not moored, use ctr: {details}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"the daemon at {address} gave no answer within {settings.timeout:g}s, wait longer with --timeout"
            )
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return PermissionDenied(f"the daemon at {address} refuses: {details}; run moorctl as root")
        case code:
            return Unknown(f"the daemon at {address} answered {code.name}: {details}; its log may say more")


def _unreachable(address: str) -> MooredError | None:
    """Why nobody can connect to a socket, asked of the kernel since gRPC's texts differ by version; None if one can."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(address)
        except FileNotFoundError:
            return NotFound(f"there is no socket {address}, {START}")
        except PermissionError:
            return PermissionDenied(
                f"permission denied on socket {address}, run moorctl as root or name another socket with --address"
            )
        except ConnectionRefusedError:
            return Unavailable(f"nobody listens on socket {address}, {START}")
        except BlockingIOError:
            return Unavailable(f"the daemon at {address} accepts no connections, its queue is full; try again")
        except OSError as error:
            reason = error.strerror or str(error)
            return InvalidArgument(f"cannot connect to {address!r}: {reason}; name a socket with --address")
    return None
