"""The process that forks shims: it has loaded their code, and each shim is a copy that shares what it leaves alone.

It reads one request a message on standard input, a SOCK_SEQPACKET socket, and answers each; its end ends the zygote.
Shims go on: each is a session of its own. Requests and answers: `spawn`.
"""

from __future__ import annotations

import gc
import os
import select
import socket
from contextlib import suppress
from typing import Final, NoReturn

from moored.plugins.runtime.shim import address, host, log, messages, sandboxmessages, server, spawn
from moored.plugins.runtime.shim.loop import Loop, take
from moored.plugins.runtime.shim.spare import Spare

_CALM: Final = 0.03
"""Seconds."""


def main() -> None:
    """Serve requests until the other side closes."""
    gc.disable()
    zygote = Zygote(socket.socket(fileno=os.dup(0)))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    zygote.run()


class Zygote:
    """All that a shim needs is made before it is forked, as far as that can be: it is shared then, and quick."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._host = prepare()
        self._spare: Spare | None = None

    def run(self) -> None:
        """Answer requests until their end."""
        gc.collect()
        gc.freeze()  # a collection in a shim would otherwise write to, and so copy, every page
        while True:
            if self._spare is None and self._is_calm():
                self._have_a_spare()
            if not (data := self._requests.recv(spawn.MAX_MESSAGE)):
                return
            try:
                answer = spawn.pack(self._fork(spawn.unpack_spawn(data)))
            except (OSError, ValueError, TypeError) as error:
                answer = spawn.pack_fault(str(error))
            self._requests.send(answer)

    def _is_calm(self) -> bool:
        """Whether no request comes for a moment, in which the last shim has the processor for itself."""
        return not select.select([self._requests], [], [], _CALM)[0]

    def _have_a_spare(self) -> None:
        """Fork the next shim ahead; without one it is forked when it is asked for."""
        with suppress(OSError):
            self._spare = Spare(self._become, self._requests)

    def _become(self, wanted: spawn.Spawn, listener: socket.socket, loop: Loop | None = None) -> NoReturn:
        become_shim(self._host, wanted, listener, loop)

    def _fork(self, wanted: spawn.Spawn) -> spawn.Spawned:
        """Listen, then fork: whoever connects after the answer is served."""
        listener = address.listen(wanted.socket_path)
        if listener is None:
            return spawn.Spawned(joined=True)
        with listener:
            spare, self._spare = self._spare, None
            if spare is not None:
                with suppress(OSError):  # it is gone
                    spare.become(wanted, listener)
                    return spawn.Spawned(pid=spare.pid)
            pid = os.fork()
            if pid:
                return spawn.Spawned(pid=pid)
            self._requests.close()
            return self._become(wanted, listener)


def prepare() -> host.Host:
    """Make what shims have in common: the code of all messages, the handlers of their signals, their name."""
    messages.prepare()
    sandboxmessages.prepare()
    for number in server.SIGNALS:
        take(number)
    calls = host.Host()
    calls.rename()
    return calls


def become_shim(calls: host.Host, about: spawn.Spawn, listener: socket.socket, loop: Loop | None = None) -> NoReturn:
    """Be a shim until its end, which is the process's. For a process just forked, with a loop that it may have."""
    status = 1
    try:
        names = f"-namespace {about.namespace} -id {about.id} -address {about.grpc_address}"
        calls.settle(about.bundle, f"moored-shim {names}")
        host.raise_oom_score()
        if about.shim_cgroup:
            host.join_cgroup(about.shim_cgroup)
        gc.enable()
        server.serve(about, listener, loop or Loop())
        status = 0
    except BaseException as error:  # noqa: BLE001  # the end of a process, which nobody above sees
        log.failure("shim ended", error)
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
