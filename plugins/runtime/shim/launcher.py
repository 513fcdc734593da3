"""The daemon's side of our shims: keeps one zygote, has it fork shims, and cleans up after a shim that died.

For the daemon only: this is asyncio, which the shim itself does not load.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from moored.kernel import zygotes
from moored.kernel.errors import Unknown
from moored.kernel.ports.tasks import Exit
from moored.plugins.runtime.shim import cleanup as cleaning
from moored.plugins.runtime.shim.spawn import MAX_MESSAGE, Spawn, Spawned, pack, unpack_spawned

_START: Final = (
    "import os, sys; sys.path[:] = sys.argv[2].split(':'); os.register_at_fork = lambda **_: None; "
    "from moored.plugins.runtime.shim.zygote import main; main()"
)
"""The program. It has no threads, and what `threading` and `random` do after a fork would cost each shim 0.4 MB."""
_PATIENCE: Final = 5.0
"""Seconds for an answer of the zygote, its start included."""
_GRACE: Final = 1.0
"""Seconds for its end by itself: what it has forked ahead ends with it."""
_LOG: Final = logging.getLogger("moored.shim")
_TITLE_ROOM: Final = 512
"""Bytes of command line that a shim may use to show what it is."""


class Zygote:
    """A process that has loaded the shim's code and forks a shim for each request; ending it ends no shim."""

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._process = zygotes.Zygote("the zygote", _program, patience=patience, grace=_GRACE, longest=MAX_MESSAGE)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """The zygote's pid, 0 while there is none."""
        return self._process.pid

    async def start(self) -> None:
        """Start the process without waiting for it to be ready. Raises OSError."""
        await self._process.start()

    async def close(self) -> None:
        """End the zygote; shims go on."""
        await self._process.close()

    async def spawn(self, wanted: Spawn) -> Spawned:
        """Have a shim that serves `wanted.address` once this returns: a new one, or the one that does already.

        Raises Unknown for what the zygote met, DeadlineExceeded if it hangs twice, Unavailable if it dies twice. A shim
        may have been forked all the same: its address tells.
        """
        answer = unpack_spawned(await self._process.ask(pack(wanted), wanted=f"the shim of {wanted.id!r}"))
        if isinstance(answer, str):
            raise Unknown(f"failed to start the shim of {wanted.id!r}: {answer}")
        return answer


def _program() -> zygotes.Program:
    # isolated and without `site`: the daemon's path is handed over, its environment stays the shims'
    title = "moored-shim".ljust(_TITLE_ROOM)
    return zygotes.Program(command=(sys.executable, "-I", "-S", "-c", _START, title, _path()))


def _path() -> str:
    """Where this process finds modules, for another that does not look itself."""
    return ":".join(str(Path(entry).absolute()) for entry in sys.path if entry and ":" not in entry)


async def cleanup(
    bundle: Path,
    namespace: str,
    container_id: str,
    warn: Callable[[str], None] = _LOG.warning,
) -> Exit:
    """Do what a shim's `delete` does, on a thread: delete the container by force, unmount its rootfs, tell its pid.

    Faults on the way are told to `warn`, from that thread, and not raised, as the shim's own `delete` has it.
    """
    ended = await asyncio.to_thread(cleaning.clean, os.fspath(bundle), namespace, container_id, warn)
    return Exit(pid=ended.pid, status=ended.status, exited_at=ended.at)


__all__ = ["Spawn", "Spawned", "Zygote", "cleanup"]
