"""The process that forks workers, `python -m moored.plugins.diff.zygote DAEMON_PID LINGER`: it has loaded their code.

It reads one request a message on descriptor 0, a SOCK_SEQPACKET socket, and answers each. It ends with the other side,
and after LINGER seconds without a request. Workers are the daemon's children, not its: they go on without it.

Request: the name of the worker's module, with the descriptors that become its 0, 1, 2 and the socket for its reports.
Answer (JSON): pid; or fault, a text.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
from typing import Final, NoReturn

from moored.plugins.diff.apply import process as applying
from moored.plugins.diff.child import Work, serve
from moored.plugins.diff.compare import process as comparing
from moored.plugins.diff.syscalls import Syscalls

NAME: Final = "moored-layers"
"""What the process is called, and a worker without a task; one at work but for the last letter."""
MAX_MESSAGE: Final = 4096
DESCRIPTORS: Final = 4
_WORKS: Final[dict[str, Work]] = {one.__name__: one.work for one in (applying, comparing)}


def main() -> None:
    """Serve requests until there are no more."""
    daemon, linger = int(sys.argv[1]), float(sys.argv[2])
    gc.disable()
    syscalls = Syscalls()
    syscalls.end_with_parent()
    if os.getppid() != daemon:
        return
    syscalls.rename(NAME)
    with socket.socket(fileno=os.dup(0)) as requests:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        gc.collect()
        gc.freeze()  # a collection in a worker would otherwise write to, and so copy, every page
        while select.select([requests], [], [], linger)[0] and _answer(requests, syscalls, daemon):
            pass


def _answer(requests: socket.socket, syscalls: Syscalls, daemon: int) -> bool:
    """Answer the next request; whether there was one."""
    data, fds, _, _ = socket.recv_fds(requests, MAX_MESSAGE, DESCRIPTORS)
    if not data:
        return False
    answer: dict[str, int | str]
    try:
        # the kernel leaves out those that this process has no room for
        pid = syscalls.fork_beside() if len(fds) == DESCRIPTORS else -1
        if not pid:
            requests.close()
            _become_worker(data.decode(), fds, syscalls, daemon)
        answer = {"pid": pid} if pid > 0 else {"fault": "too many open files"}
    except OSError as error:
        answer = {"fault": str(error.strerror)}
    finally:
        for fd in fds:
            os.close(fd)
    requests.send(json.dumps(answer).encode())
    return True


def _become_worker(module: str, fds: list[int], syscalls: Syscalls, daemon: int) -> NoReturn:
    """Be a worker until its end, which is the process's. For a process just forked."""
    status = 1
    try:
        for number, fd in enumerate(fds[:-1]):
            os.dup2(fd, number)
            os.close(fd)
        gc.enable()
        serve(_WORKS[module], fds[-1], daemon, (NAME, NAME[:-1]), syscalls)
        status = 0
    finally:
        # nothing of what called this is to run a second time
        os._exit(status)


if __name__ == "__main__":
    main()
