"""One command's connection to the daemon: opens the client, runs the command, says what to do on failure."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

from moored.api.cli.home import fifo_folder
from moored.api.cli.settings import Settings
from moored.api.client import Client
from moored.kernel.errors import (
    DeadlineExceeded,
    MooredError,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Unknown,
)

T = TypeVar("T")

START: Final = "start it with: moored -c /etc/moored/config.toml"
INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells give it."""


def run(settings: Settings, body: Callable[[Client], Awaitable[T]]) -> T:
    """Run a command's body with an open client. Raises the errors of the set, with what to do next in their text."""
    fifos = fifo_folder()

    async def main() -> T:
        client = Client(settings.address, namespace=settings.namespace, timeout=settings.timeout, fifo_folder=fifos)
        async with client:
            return await body(client)

    gc.freeze()
    gc.enable()
    try:
        return asyncio.run(main())
    except MooredError as error:
        raise advised(error, settings) from error
    except KeyboardInterrupt:
        interrupted()
    except BrokenPipeError:
        return _nobody_reads()


def interrupted() -> NoReturn:
    """End as a program that Ctrl-C ended."""
    sys.exit(INTERRUPTED)


def _nobody_reads() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(0)


def advised(error: MooredError, settings: Settings) -> MooredError:
    """The same error with the next step added where there is one that fits all commands."""
    text, address = error.text, settings.address
    if isinstance(error, Unavailable) and "is the daemon running?" in text:
        return Unavailable(f"{text} {START}; moorctl doctor tells more")
    if isinstance(error, PermissionDenied) and "permission denied on socket" in text:
        return PermissionDenied(f"{text}, run moorctl as root or name another socket with --address")
    if isinstance(error, DeadlineExceeded) and "gave no answer" in text:
        return DeadlineExceeded(f"{text}, wait longer with --timeout")
    if isinstance(error, Unimplemented) and not text:
        return Unimplemented(f"the daemon at {address} does not do that")
    if isinstance(error, Unknown) and not text:
        return Unknown(f"the daemon at {address} failed without saying why; its log may say more")
    return error
