"""A process that waits to become a shim: forked ahead, it has behind it what every shim has to do once.

That is mostly the copying of pages that a new process writes to, which would otherwise be waited for in each create.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Final, NoReturn

from moored.kernel.payloads import Mount, Packed
from moored.kernel.ports.invocations import Invocation
from moored.kernel.protowire import decode, encode
from moored.plugins.runtime.oci import invocations
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim import spawn
from moored.plugins.runtime.shim.loop import Loop
from moored.plugins.runtime.shim.sandbox import SandboxService
from moored.plugins.runtime.shim.service import TaskService

Become = Callable[[spawn.Spawn, socket.socket, Loop], NoReturn]

_DESCRIPTOR: Final = struct.Struct("i")


class Spare:
    """One such process, a child of this one; it ends with this one, or when it is dropped.

    become   is called in it with the shim to be, its listening socket, and a loop that has run
    strange  what it has to close of this process
    """

    def __init__(self, become: Become, strange: socket.socket) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid == 0:
                ours.close()
                strange.close()
                _wait(theirs, become)
        self._socket = ours

    def become(self, wanted: spawn.Spawn, listener: socket.socket) -> None:
        """Let it be a shim. Raises OSError if it is gone."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(listener.fileno()))]
        with self._socket:
            self._socket.sendmsg([spawn.pack(wanted)], rights)


def _wait(orders: socket.socket, become: Become) -> NoReturn:
    try:
        loop = _warmed()
        data, rights, _, _ = orders.recvmsg(spawn.MAX_MESSAGE, socket.CMSG_LEN(_DESCRIPTOR.size))
        if data and rights:
            wanted = spawn.unpack_spawn(data)
            listener = socket.socket(fileno=_DESCRIPTOR.unpack(rights[0][2])[0])
            listener.set_inheritable(False)
            orders.close()
            become(wanted, listener, loop)
    finally:
        os._exit(0)


def _warmed() -> Loop:
    """Do once what a shim does first, for nobody."""
    loop = Loop()
    tasks = TaskService(loop, "", lambda _event: None, lambda: None)
    tasks.methods()
    SandboxService(loop, "", tasks).methods()
    mount = Mount(type="overlay", source="overlay", options=("lowerdir=/",))
    packed = Packed(type_url="url", value=b"value")
    decode(m.CreateTaskRequest, encode(m.CreateTaskRequest("id", "/", (mount,), options=packed)))
    decode(m.PidResponse, encode(m.PidResponse(1)))
    invocations.from_json(invocations.to_json(Invocation(driver="runc", binary="/", root="/")))
    loop.run(loop.sleep(0))
    return loop
