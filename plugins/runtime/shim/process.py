"""One process of a container as clients see it: init, or an exec."""

from __future__ import annotations

from typing import Final

from moored.plugins.runtime.shim.loop import ExitStatus, Future, Lock, Loop
from moored.plugins.runtime.shim.messages import NEVER
from moored.plugins.runtime.shim.runc import Ends
from moored.plugins.runtime.shim.stdio import Stdio, Streams

CREATED: Final = 1
RUNNING: Final = 2
STOPPED: Final = 3
PAUSED: Final = 4
PAUSING: Final = 5
"""As `containerd.v1.types.Status` numbers them."""

WORDS: Final = {CREATED: "created", RUNNING: "running", STOPPED: "stopped", PAUSED: "paused", PAUSING: "pausing"}


class Process:
    """What is known of one process.

    id      the exec's id, "" for init
    spec    OCI's Process of an exec
    over    done once the process ended, or failed to start
    lock    held while it is started, deleted or told to have ended
    """

    def __init__(self, loop: Loop, exec_id: str, stdio: Stdio, spec: dict[str, object] | None = None) -> None:
        self.id = exec_id
        self.stdio = stdio
        self.spec = spec
        self.pid = 0
        self.status = CREATED
        self.exit_status = 0
        self.exited_at = NEVER
        self.over: Future[None] = loop.future()
        self.lock = Lock(loop)
        self.streams: Streams | None = None

    @property
    def ends(self) -> Ends:
        """What the runtime gives the process."""
        assert self.streams is not None
        return Ends(self.streams.child_fds, self.streams.console_socket)

    def end(self, status: ExitStatus) -> None:
        """Note how it ended."""
        self.exit_status, self.exited_at, self.status = int(status), status.at, STOPPED
        if self.streams is not None:
            self.streams.exited()
        self.over.set_result(None)

    async def close_streams(self) -> None:
        """Give up its streams, if it has any."""
        if self.streams is not None:
            await self.streams.close()
