"""The daemon's side of our shims: keeps one zygote, has it fork shims, and cleans up after a shim that died.

For the daemon only: this is asyncio, which the shim itself does not load.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from moored.kernel.errors import DeadlineExceeded, Unavailable, Unknown
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
_LOG: Final = logging.getLogger("moored.shim")
_TITLE_ROOM: Final = 512
"""Bytes of command line that a shim may use to show what it is."""


class Zygote:
    """A process that has loaded the shim's code and forks a shim for each request; one request at a time.

    It is started by `start`, again when it died, and replaced when it hangs. Ending it ends no shim.
    """

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """The zygote's pid, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the process without waiting for it to be ready. Raises OSError."""
        async with self._turn:
            await self._start()

    async def close(self) -> None:
        """End the zygote; shims go on."""
        async with self._turn:
            await self._end()

    async def spawn(self, wanted: Spawn) -> Spawned:
        """Have a shim that serves `wanted.address` once this returns: a new one, or the one that does already.

        Raises Unknown for what the zygote met, DeadlineExceeded if it hangs twice, Unavailable if it dies twice. A shim
        may have been forked all the same: its address tells.
        """
        async with self._turn:
            try:
                return await self._ask(wanted)
            except (DeadlineExceeded, Unavailable):
                await self._end()
            return await self._ask(wanted)

    async def _ask(self, wanted: Spawn) -> Spawned:
        if self._process is None or self._process.returncode is not None:
            await self._end()
            await self._start()
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience):
                await loop.sock_sendall(self._socket, pack(wanted))
                data = await loop.sock_recv(self._socket, MAX_MESSAGE)
        except TimeoutError:
            text = f"the zygote did not fork the shim of {wanted.id!r} within {self._patience:g} s"
            raise DeadlineExceeded(text) from None
        except asyncio.CancelledError:
            await self._end()  # its answer would be taken for the next one's
            raise
        except OSError as error:
            raise Unavailable(f"the zygote is gone: {error}") from error
        if not data:
            raise Unavailable("the zygote is gone")
        answer = unpack_spawned(data)
        if isinstance(answer, str):
            raise Unknown(f"failed to start the shim of {wanted.id!r}: {answer}")
        return answer

    async def _start(self) -> None:
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                # Isolated and without `site`: the daemon's path is handed over, its environment stays the shims'.
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", "-c", _START, "moored-shim".ljust(_TITLE_ROOM), _path(),
                    stdin=theirs.fileno(), stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        self._socket = ours

    async def _end(self) -> None:
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None:
            return
        try:
            async with asyncio.timeout(1):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


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
