"""One shim as its manager holds it: the connection, its log, and what happens when it goes away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import DeadlineExceeded, MooredError, NotFound, Unavailable
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import Exit
from moored.plugins.runtime.manager import bundle as files
from moored.plugins.runtime.manager.bootstrap import parse_answer
from moored.plugins.runtime.manager.bundle import Bundle
from moored.plugins.runtime.manager.connection import Connection, connect, nobody_listens
from moored.plugins.runtime.manager.kinds import Kind
from moored.plugins.runtime.manager.logs import LogPipe

CONNECT_SECONDS: Final = 10.0
_SHORTEST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries to reach a shim that is alive and takes no connection."""
_CLOSED: Final = "ttrpc: closed"
_REMOVALS: Final = (0.0, 0.02, 0.1, 0.5, 1.0)
"""Pauses before each try to remove a bundle: what is mounted may be in use a moment longer."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: the first four from the config's `[timeouts]`, the others for calls that no config names.

    start is for the program that starts a shim; run for starting processes in it. An OCI runtime has to do its work
    within most of them, and a delete waits up to 10 s for output that is still being copied.
    """

    load: float = 5.0
    cleanup: float = 5.0
    shutdown: float = 3.0
    state: float = 2.0
    start: float = 30.0
    create: float = 120.0
    run: float = 60.0
    delete: float = 60.0
    checkpoint: float = 600.0
    other: float = 10.0


OnGone = Callable[["ManagedShim", Exit | None], Awaitable[None]]
"""Told once that a shim went away, after the cleanup; with the exit that the cleanup found."""


class ManagedShim:
    """A `kernel.ports.shims.Shim`. Made with its bundle there; then `start`, or `load`.

    cleanups bounds how many clean up at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        kind: Kind,
        deadlines: Deadlines,
        log: FilteringBoundLogger,
        cleanups: asyncio.Semaphore,
    ) -> None:
        self._cleanups = cleanups
        self._files = bundle
        self._kind = kind
        self._deadlines = deadlines
        self._log = log.bind(namespace=bundle.namespace, id=bundle.id)
        self._endpoint = Endpoint("", 0)
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._answered = False
        self._pipe: LogPipe | None = None
        self._life: asyncio.Task[None] | None = None
        self._retiring = asyncio.Event()
        self._clean = False
        self._exit: Exit | None = None
        self.gone = False

    @property
    def id(self) -> str:
        """See the port."""
        return self._files.id

    @property
    def namespace(self) -> str:
        """See the port."""
        return self._files.namespace

    @property
    def bundle(self) -> Path:
        """See the port."""
        return self._files.path

    @property
    def files(self) -> Bundle:
        """The bundle's content."""
        return self._files

    @property
    def endpoint(self) -> Endpoint:
        """See the port."""
        return self._endpoint

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._connection is not None

    @property
    def kind(self) -> Kind:
        """How it is started and cleaned up."""
        return self._kind

    @property
    def reports_exits(self) -> bool:
        """See Kind."""
        return self._kind.reports_exits

    # --- beginning ----------------------------------------------------------------------------------------------------

    async def start(self, options: TypedBytes | None, on_gone: OnGone) -> None:
        """Run the shim, or find that it runs, and connect. Raises as Kind.start; something may run then."""
        self._open_log()
        self._endpoint = await self._kind.start(self._files, options, seconds=self._deadlines.start)
        await self.dial(self._endpoint)
        self._begin(on_gone)

    def _begin(self, on_gone: OnGone) -> None:
        # nothing of the call that happened to start it
        self._life = asyncio.create_task(self._live(on_gone), name=f"shim {self.id}", context=Context())

    async def dial(self, endpoint: Endpoint, *, seconds: float = CONNECT_SECONDS) -> None:
        """Connect for some calls only, up to `leave`. Raises Unavailable, DeadlineExceeded."""
        self._endpoint = endpoint
        self._connection = await connect(endpoint, seconds=seconds)
        self._connected.set()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        if self._connection is not None:
            await self._connection.wait_closed()

    def load(self, endpoint: Endpoint, on_gone: OnGone) -> None:
        """Begin to connect to a shim of an earlier daemon; a dead one goes its way at once. Raises OSError."""
        self._endpoint = endpoint
        self._open_log()
        self._begin(on_gone)

    def _open_log(self) -> None:
        self._pipe = LogPipe(self._files.open_log(), self._log)

    def _close_log(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    # --- calls --------------------------------------------------------------------------------------------------------

    async def settled(self) -> bool:
        """Wait until the shim can be called, or is gone; whether it can be called."""
        try:
            await self._usable()
        except Unavailable:
            return False
        return True

    async def require(self) -> None:
        """Wait until the shim can be called. Raises Unavailable if it is gone."""
        await self._usable()

    async def _usable(self) -> Connection:
        """Give a connection, once there is one again; raises Unavailable if there will be none."""
        while True:
            await self._connected.wait()
            connection = self._connection
            if connection is None or (connection.closed and self._life is None):
                raise Unavailable(_CLOSED, bare=True)
            if not connection.closed:
                return connection
            await connection.wait_closed()
            await asyncio.sleep(0)  # until that has been seen where the shim lives

    async def call(self, service: str, method: str, request: bytes, *, seconds: float | None) -> bytes:
        """See the port."""
        try:
            async with asyncio.timeout(seconds):
                connection = await self._usable()
                answer = await connection.call(service, method, request, namespace=self.namespace, seconds=seconds)
        except (DeadlineExceeded, TimeoutError) as error:
            if isinstance(error, DeadlineExceeded) and not error.bare:
                raise  # the shim's own words
            raise DeadlineExceeded(f"shim of {self.id!r} did not answer {method} within {seconds:g} seconds") from None
        except Unavailable:
            raise
        except MooredError:
            self._answered = True
            raise
        self._answered = True
        return answer

    # --- end ----------------------------------------------------------------------------------------------------------

    async def retire(self, *, clean: bool = False) -> Exit | None:
        """See the port."""
        self._retiring.set()
        self._clean = clean
        if self._connection is not None:
            await self._connection.close()
        if self._life is not None:
            self._connected.set()
            await asyncio.shield(self._life)
        return self._exit

    async def leave(self) -> None:
        """Forget the shim and let it run: the daemon ends."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        if self._connection is not None:
            await self._connection.close()
        self._close_log()

    async def _live(self, on_gone: OnGone) -> None:
        """Keep the connection while the shim lives, then clean up after it."""
        try:
            await self._while_alive()
            self._connection = None
            self._connected.set()
            await self._clean_up()
            self.gone = True
            await on_gone(self, self._exit)
        except Exception:  # noqa: BLE001 - here the shim's life ends
            self._log.exception("shim is not cleaned up")
        finally:
            self._close_log()

    async def _while_alive(self) -> None:
        """Return once the shim is gone, or is to go.

        A connection that breaks tells little. Only one that is refused tells that nobody is there.
        """
        pause = 0.0
        while not self._retiring.is_set():
            await self._pause(pause)
            if self._connection is None:
                try:
                    self._connection = await connect(self._endpoint, seconds=CONNECT_SECONDS)
                except MooredError as error:
                    if nobody_listens(error):
                        self._log.info("shim is gone", reason=error.text)
                        return
                    pause = self._longer(pause, error.text)
                    continue
                self._connected.set()
            await self._connection.wait_closed()
            if self._retiring.is_set():
                return
            self._connected.clear()
            await self._connection.close()
            self._connection = None
            pause = 0.0 if self._answered else self._longer(pause, "it closed the connection")
            self._answered = False

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._retiring.wait()

    def _longer(self, pause: float, reason: str) -> float:
        self._log.warning("shim is not reached", reason=reason)
        return min(max(pause * 2, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    async def _clean_up(self) -> None:
        async with self._cleanups:
            try:
                self._exit = await self._kind.cleanup(self._files, clean=self._clean, seconds=self._deadlines.cleanup)
            except MooredError as error:
                self._log.warning("cleanup after the shim failed", reason=error.text)
        await remove(self._files, self._log, endpoint=self._endpoint)


def drop_socket(endpoint: Endpoint) -> None:
    """Remove a shim's socket if it is one that nobody serves any more; blocks a moment at most."""
    path = endpoint.address.removeprefix("unix://")
    if path.startswith("/"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()


async def remove(
    bundle: Bundle,
    log: FilteringBoundLogger,
    settle: Callable[[Path], object] = lambda _hidden: None,
    *,
    endpoint: Endpoint | None = None,
) -> bool:
    """Remove a bundle, and a dead socket before it, trying again while it is in use; whether it is gone.

    What stays is for the next start.
    """

    def work(*, lazy: bool) -> None:
        if endpoint is not None:
            drop_socket(endpoint)
        bundle.remove(settle, lazy=lazy)

    for pause in _REMOVALS:
        await asyncio.sleep(pause)
        try:
            await asyncio.to_thread(work, lazy=pause == _REMOVALS[-1])
        except OSError as error:
            fault = error
        else:
            return True
    log.error("bundle is not removed", namespace=bundle.namespace, id=bundle.id, reason=str(fault))
    return False


def stored_endpoint(bundle: Bundle) -> Endpoint:
    """Give where the bundle's shim listens. Raises NotFound if it was never written, Unknown for nonsense; blocks."""
    data = bundle.read(files.BOOTSTRAP)
    if data:
        return parse_answer(data)
    # of containerd 1.6 and 1.7
    with suppress(OSError):
        if address := bundle.text("address"):
            return Endpoint(address, 2, "ttrpc")
    raise NotFound(f"task {bundle.id!r} has no shim address")
