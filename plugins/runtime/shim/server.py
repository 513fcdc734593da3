"""A shim that serves: the loop, the task and sandbox APIs on a listening socket, events, and the end.

It ends when it has no container, no sandbox, and is asked to (Shutdown), or on SIGTERM and SIGINT, which leave
containers alone: a shim that is gone is cleaned up by the daemon. SIGUSR1 writes what it does to the log.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim.address import listen
from moored.plugins.runtime.shim.loop import Loop, Task
from moored.plugins.runtime.shim.publisher import Publisher
from moored.plugins.runtime.shim.sandbox import NAME as SANDBOX
from moored.plugins.runtime.shim.sandbox import SandboxService
from moored.plugins.runtime.shim.service import NAMES, TaskService
from moored.plugins.runtime.shim.spawn import Spawn
from moored.plugins.runtime.shim.wire import Server

SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a shim takes."""
_TO_SETTLE: Final = 2.0
"""Seconds for which a shim that ends waits for exits that are still to come."""
_TO_HEAR: Final = 0.05
"""Seconds for which a connection outlives the answer to ShutdownSandbox: clients in Go lose one that ends at once."""
_TO_FLUSH: Final = 5.0
"""Seconds for which a shim that ends still tries to send its events."""


def serve(about: Spawn, listener: socket.socket, loop: Loop) -> None:
    """Serve until the end, then remove the socket."""
    own = _inode(about.socket_path)

    def remove_socket() -> None:
        if _inode(about.socket_path) == own:  # not that of a shim which took the place meanwhile
            with suppress(FileNotFoundError):
                os.unlink(about.socket_path)

    try:
        loop.run(_serve(loop, about, listener, remove_socket))
    finally:
        remove_socket()


async def _serve(loop: Loop, about: Spawn, listener: socket.socket, remove_socket: Callable[[], None]) -> None:
    publisher = Publisher(loop, about.ttrpc_address, about.namespace)
    over = loop.future()

    def end() -> None:
        over.set_result(None)

    tasks = TaskService(loop, about.namespace, publisher.publish, end)
    tasks.house = pod = SandboxService(loop, about.namespace, tasks)
    services = {**dict.fromkeys(NAMES, tasks.methods()), SANDBOX: pod.methods()}
    server = Server(loop, listener, services, publisher.nudge)
    loop.on_signal(signal.SIGTERM, end)
    loop.on_signal(signal.SIGINT, end)
    loop.on_signal(signal.SIGUSR1, lambda: _tell_stacks(loop, tasks))
    accepting = loop.spawn(server.run())
    shown = _show(loop, about, tasks) if about.debug_socket else None
    await over
    accepting.cancel()
    if shown is not None:
        shown.cancel()
    listener.close()
    remove_socket()
    # The answer to Shutdown goes out first; the connection stays until the process ends, which tells the daemon.
    await server.idle()
    with suppress(TimeoutError):
        await loop.within(_TO_SETTLE, tasks.settled())
    if not await publisher.flush(_TO_FLUSH):
        log.warning("events not sent before the end of the shim")
    if pod.was_shut:
        await loop.sleep(_TO_HEAR)


def _tell_stacks(loop: Loop, tasks: TaskService) -> None:
    from moored.plugins.runtime.shim import debug

    log.info(debug.stacks(loop, tasks))


def _show(loop: Loop, about: Spawn, tasks: TaskService) -> Task[None]:
    """Serve the debug socket until the task is cancelled; the bundle says where it is, for whoever cleans up."""
    from moored.plugins.runtime.shim import debug

    async def show() -> None:
        listener = None
        try:
            if (listener := listen(about.debug_socket)) is not None:
                files.write(f"{about.bundle}/{files.DEBUG}", about.debug_socket.encode())
                await debug.serve(loop, listener, debug.pages_of(loop, tasks))
        except OSError as error:
            log.warning(f"nothing is shown on {about.debug_socket!r}: {error}")
        finally:
            if listener is not None:
                listener.close()
                with suppress(FileNotFoundError):
                    os.unlink(about.debug_socket)

    return loop.spawn(show())


def _inode(path: str) -> tuple[int, int] | None:
    """Tell which file a path is."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
