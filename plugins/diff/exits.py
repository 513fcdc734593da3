"""The ends of this process's children, to be awaited without a thread for each."""

from __future__ import annotations

import asyncio
import os


def exit_of(pid: int) -> asyncio.Future[int]:
    """The wait status of a child that nobody else waits for, once it has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    pidfd = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        future.set_result(os.waitpid(pid, 0)[1])

    loop.add_reader(pidfd, ended)
    return future
