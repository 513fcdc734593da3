"""Sends a shim's events to the daemon, in order, each until it was taken; over a restart of the daemon too.

The queue is bounded: of too many, the oldest event that is not an exit is dropped, and only then exits. An event that
the daemon refuses is dropped after some tries. Source: `contracts/shim-v2.md` 7.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from moored.kernel import payloads
from moored.kernel.errors import MooredError, Unavailable
from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim.loop import Future, Loop, Task
from moored.plugins.runtime.shim.wire import Client

MAX_QUEUE: Final = 2048
_SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_PATIENCE: Final = 5.0
"""Seconds for one call."""
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_TRIES: Final = 6
"""How often an event is sent that the daemon refuses."""
_LINGER: Final = 2.0
"""Seconds for which a connection is kept that has nothing to send."""
_TOPICS: Final[dict[type[payloads.Payload], str]] = {
    payloads.TaskCreate: "/tasks/create",
    payloads.TaskStart: "/tasks/start",
    payloads.TaskExit: "/tasks/exit",
    payloads.TaskDelete: "/tasks/delete",
    payloads.TaskOOM: "/tasks/oom",
    payloads.TaskExecAdded: "/tasks/exec-added",
    payloads.TaskExecStarted: "/tasks/exec-started",
    payloads.TaskPaused: "/tasks/paused",
    payloads.TaskResumed: "/tasks/resumed",
}


class Publisher:
    """The queue and what empties it; an idle one holds no connection and no timer."""

    def __init__(self, loop: Loop, address: str, namespace: str) -> None:
        self._loop = loop
        self._path = address.removeprefix("unix://")
        self._namespace = namespace
        self._queue: deque[m.Envelope] = deque()
        self._beginning = False
        self._sending: Task[None] | None = None
        self._client: Client | None = None
        self._nudged: Future[None] | None = None

    def publish(self, event: payloads.Payload) -> None:
        """Queue an event, stamped with the time of now; never waits."""
        topic = _TOPICS[type(event)]
        self._queue.append(m.Envelope(time.time_ns(), self._namespace, topic, event.pack()))
        if len(self._queue) > MAX_QUEUE:
            self._drop_one()
        if not self._beginning:
            self._beginning = True
            self._loop.later(0, self._begin)

    def _begin(self) -> None:
        """Send what is queued, in a turn after that of the call which it tells of: its answer goes first."""
        self._beginning = False
        if self._sending is None:
            self._sending = self._loop.spawn(self._send_all())
        else:
            self.nudge()

    def nudge(self) -> None:
        """Try now: somebody connected to the shim, so the daemon may be back."""
        if self._nudged is not None:
            self._nudged.set_result(None)

    async def flush(self, seconds: float) -> bool:
        """Wait until the queue is empty, at most so long, and tell whether it is."""
        deadline = time.monotonic() + seconds
        while self._queue and time.monotonic() < deadline:
            self.nudge()
            await self._loop.sleep(0.005)
        return not self._queue

    def _drop_one(self) -> None:
        index = next((at for at, one in enumerate(self._queue) if one.topic != "/tasks/exit"), 0)
        log.warning(f"event {self._queue[index].topic} dropped, {MAX_QUEUE} wait for the daemon")
        del self._queue[index]

    async def _send_all(self) -> None:
        try:
            await self._send_while_there_are()
        finally:
            self._hang_up()
            self._sending = None

    async def _send_while_there_are(self) -> None:
        pause, refusals = _FIRST_PAUSE, 0
        while self._queue or await self._idle(_LINGER):
            if not self._queue:
                continue
            envelope = self._queue[0]
            try:
                await self._loop.within(_PATIENCE, self._forward(envelope))
            except (OSError, Unavailable, TimeoutError):  # OSError: there is no daemon at the moment
                self._hang_up()
            except MooredError as error:
                refusals += 1
                log.warning(f"event {envelope.topic} refused: {error}")
            else:
                pause, refusals = _FIRST_PAUSE, 0
                self._taken(envelope)
                continue
            if refusals >= _TRIES:
                self._taken(envelope)
                refusals = 0
            await self._idle(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _taken(self, envelope: m.Envelope) -> None:
        """Forget an event, unless it was dropped meanwhile."""
        if self._queue and self._queue[0] is envelope:
            self._queue.popleft()

    async def _forward(self, envelope: m.Envelope) -> None:
        if self._client is None:
            self._client = await Client.connect(self._loop, self._path)
        await self._client.call(_SERVICE, "Forward", m.ForwardRequest(envelope))

    async def _idle(self, seconds: float) -> bool:
        """Wait for a nudge or a new event, and tell whether there was one in time."""
        self._nudged = self._loop.future()
        try:
            await self._loop.within(seconds, self._nudged)
        except TimeoutError:
            return False
        finally:
            self._nudged = None
        return True

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
