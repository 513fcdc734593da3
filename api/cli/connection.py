"""What commands ask only of moored, one call each; every failure becomes an error that says what to do next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from moored.api.cli import records
from moored.api.cli.settings import Settings
from moored.api.client.client import Client
from moored.api.client.server import Version
from moored.api.errors import wire_of
from moored.kernel.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MooredError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)

START = "start it with: moored -c /etc/moored/config.toml"

R = TypeVar("R")


class Daemon:
    """The calls that commands make, one each, all of them reads.

    Errors: Unavailable (nobody answers), PermissionDenied, DeadlineExceeded, Unimplemented (it is not moored),
    InvalidArgument (the path cannot be a socket's), Unknown (the daemon's own error). Blocks for `Settings.timeout` at
    most.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def plugins(self) -> list[records.Plugin]:
        """Every plugin, in the order of start."""
        reply = self._ask(lambda client: client.daemon.plugins())
        return [records.plugin(message) for message in reply.plugins]

    def config(self) -> records.Effective:
        """The configuration in force."""
        return records.effective(self._ask(lambda client: client.daemon.config()))

    def check(self) -> records.Check:
        """What the files on disk would change."""
        return records.check(self._ask(lambda client: client.daemon.check()))

    def version(self) -> Version:
        """Version and revision of the daemon, be it moored or containerd."""
        return self._ask(lambda client: client.server.version())

    def _ask(self, call: Callable[[Client], Awaitable[R]]) -> R:
        async def main() -> R:
            async with Client(self._settings.address, timeout=self._settings.timeout) as client:
                return await call(client)

        try:
            return asyncio.run(main())
        except MooredError as error:
            raise _told(error, self._settings) from error


@contextmanager
def connect(settings: Settings) -> Generator[Daemon]:
    """A daemon to ask, until the block ends; the socket is first touched by a call."""
    yield Daemon(settings)


_ADVICE: Sequence[tuple[type[MooredError], str, type[MooredError], str]] = (
    (Unavailable, "is the daemon running?", Unavailable, f"{{text}} {START}"),
    (Unavailable, "queue is full", Unavailable, "{text}; try again"),
    (Unavailable, "", Unavailable, "the daemon at {address} broke off: {text}; try again"),
    (Unimplemented, "", Unimplemented, "the daemon at {address} is not moored, use ctr: {text}"),
    (DeadlineExceeded, "", DeadlineExceeded, "{text}, wait longer with --timeout"),
    (
        PermissionDenied,
        "permission denied on socket",
        PermissionDenied,
        "{text}, run moorctl as root or name another socket with --address",
    ),
    (PermissionDenied, "", PermissionDenied, "the daemon at {address} refuses: {text}; run moorctl as root"),
    (Unauthenticated, "", PermissionDenied, "the daemon at {address} refuses: {text}; run moorctl as root"),
    (InvalidArgument, "cannot connect to", InvalidArgument, "{text}; name a socket with --address"),
    (MooredError, "", Unknown, "the daemon at {address} answered {code}: {text}; its log may say more"),
)
"""By class and part of the text, the first that fits: the class and text that the error becomes."""


def _told(error: MooredError, settings: Settings) -> MooredError:
    found = next(row for row in _ADVICE if isinstance(error, row[0]) and row[1] in error.text)
    code = _CODES.get(wire_of(error).code, "UNKNOWN")
    return found[2](found[3].format(text=error.text, address=settings.address, code=code))


_CODES = {
    1: "CANCELLED",
    3: "INVALID_ARGUMENT",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    13: "INTERNAL",
    15: "DATA_LOSS",
}
"""Names of status codes, as logs and other clients have them."""
