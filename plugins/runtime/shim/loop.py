"""The shim's event loop: coroutines on one thread over epoll, with timers, children and signals, and nothing else.

asyncio would cost each shim megabytes. A coroutine waits for a `Future`; `Loop.spawn` makes a `Task`, a future that
runs a coroutine. There are no threads. Times are seconds, monotonic.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, NoReturn, Self, TypeVar, cast

from moored.plugins.runtime.shim import log

T = TypeVar("T")

_READ: Final = select.EPOLLIN | select.EPOLLRDHUP
_WRITE: Final = select.EPOLLOUT
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
_KEPT_EXITS: Final = 4096


class Stopped(BaseException):
    """Raised inside a task at the place where it waits, once it is cancelled."""


class ExitStatus(int):
    """How a process ended: 0 to 255, or 128 + N for signal N; `at` is when it was reaped, nanoseconds since 1970."""

    at: int

    def __new__(cls, status: int, at: int) -> Self:
        """Make one of a status already decoded."""
        self = super().__new__(cls, status)
        self.at = at
        return self


class Future(Generic[T]):
    """A value that comes later; any number of tasks may await it, also again after it came."""

    __slots__ = ("__weakref__", "_callbacks", "_done", "_error", "_loop", "_value")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def done(self) -> bool:
        """Whether a result or an error is there."""
        return self._done

    def set_result(self, value: T) -> None:
        """Give the value; nothing happens if the future is done."""
        self._finish(value, None)

    def set_error(self, error: BaseException) -> None:
        """Make every await raise this; nothing happens if the future is done."""
        self._finish(None, error)

    def result(self) -> T:
        """Give the value of a future that is done, or raise its error."""
        assert self._done, "the future is not done"
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Have something called by the loop once this is done, soon if it is already."""
        if self._done:
            self._loop.soon(callback)
        else:
            self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        """Have it not called, if that is not too late."""
        with suppress(ValueError):
            self._callbacks.remove(callback)

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        if self._done:
            return
        self._done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._loop.soon(callback)

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self._done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine that runs; its result is the coroutine's. One that fails with nobody waiting for it is logged."""

    __slots__ = ("_coroutine", "_stopping", "_waits_for")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__(loop)
        self._coroutine = coroutine
        self._waits_for: Future[Any] | None = None
        self._stopping = False
        loop.tasks.add(self)
        loop.soon(self._step)

    @property
    def coroutine(self) -> Coroutine[Any, Any, T]:
        """What runs, for those who want to see where it waits."""
        return self._coroutine

    def cancel(self) -> None:
        """Raise Stopped where the coroutine waits, soon; nothing happens to one that ended."""
        if self._done or self._stopping:
            return
        self._stopping = True
        if self._waits_for is not None:
            self._waits_for.remove_callback(self._wake)
            self._waits_for = None
            self._loop.soon(self._step)

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        self._loop.tasks.discard(self)
        super()._finish(value, error)

    def _wake(self) -> None:
        """Go on; a call that was under way when the task was cancelled comes too late and finds another wait."""
        if self._waits_for is not None and self._waits_for.done():
            self._step()

    def _step(self) -> None:
        if self._done:
            return
        self._waits_for = None
        try:
            if self._stopping:
                self._stopping = False
                waits_for = self._coroutine.throw(Stopped())
            else:
                waits_for = self._coroutine.send(None)
        except StopIteration as end:
            self.set_result(end.value)
        except Stopped:
            self.set_error(Stopped())  # the raised one holds the frames, and through them this task
        except BaseException as error:  # noqa: BLE001  # whatever ends a task is its result
            if not self._callbacks:
                log.failure("task failed", error)
            self.set_error(error)
        else:
            self._waits_for = waits_for
            waits_for.add_callback(self._wake)
            if self._stopping:  # cancelled by itself, or by what it called
                self._stopping = False
                self.cancel()


_KEPT_TIMERS: Final = 64
"""Withdrawn timers that may wait for their time, beside as many as are live."""


class _Timer:
    """A call at a time; `callback` is None once it is made or withdrawn."""

    __slots__ = ("at", "callback", "order")

    def __init__(self, at: float, order: int, callback: Callable[[], None]) -> None:
        self.at, self.order = at, order
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: _Timer) -> bool:
        return (self.at, self.order) < (other.at, other.order)

    def cancel(self) -> None:
        """Make no call."""
        self.callback = None


class Lock:
    """Lets one task at a time into its block, in the order in which they came."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._queue: deque[Future[None]] = deque()  # the first one is inside

    async def __aenter__(self) -> None:
        turn: Future[None] = Future(self._loop)
        self._queue.append(turn)
        if len(self._queue) == 1:
            return
        try:
            await turn
        except BaseException:
            self._leave(turn)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave(self._queue[0])

    def _leave(self, turn: Future[None]) -> None:
        inside = self._queue[0] is turn
        self._queue.remove(turn)
        if inside and self._queue:
            self._queue[0].set_result(None)


class KeptExits:
    """The exits of processes that nobody had asked for, from `with loop.keeping_exits() as kept` on.

    Needed where a process may end before its pid is known: one that a runtime has left to the shim. A pid that was in
    use before the block cannot be mistaken for it.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._exits: dict[int, ExitStatus] = {}

    def __enter__(self) -> Self:
        self._loop.keepers.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.keepers.remove(self)

    def keep(self, pid: int, status: ExitStatus) -> None:
        """Remember one; of too many the oldest is forgotten."""
        self._exits.pop(pid, None)
        self._exits[pid] = status
        if len(self._exits) > _KEPT_EXITS:
            del self._exits[next(iter(self._exits))]

    def child(self, pid: int) -> Future[ExitStatus]:
        """Await the end of a process of this shim, which may be over."""
        if pid in self._exits:
            future: Future[ExitStatus] = Future(self._loop)
            future.set_result(self._exits[pid])
            return future
        return self._loop.child(pid)


class Loop:
    """One event loop; at most one runs in a process."""

    def __init__(self) -> None:
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[_Timer] = []
        self._crowded = _KEPT_TIMERS  # so many timers are worth looking for withdrawn ones
        self._order = 0
        self.tasks: set[Task[Any]] = set()
        self._epoll = select.epoll()
        self._waiting: dict[int, list[Future[None] | None]] = {}  # fd -> [reader, writer]
        self._children: dict[int, Future[ExitStatus]] = {}
        self._signals: dict[int, Callable[[], None]] = {}
        self._took: dict[int, Any] = {}
        self.keepers: list[KeptExits] = []
        self._leaving = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run until the coroutine ends, cancel all other tasks, and give its result. Every child is reaped."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self.on_signal(signal.SIGCHLD, self._reap)
        _RUNNING.append(self)
        try:
            self._reap()
            self.spawn(self._watch_signals())
            task = self.spawn(coroutine)
            task.add_callback(lambda: None)  # somebody waits for it
            while not task.done():
                self._turn()
            return task.result()
        finally:
            self._end_tasks()
            _RUNNING.remove(self)
            signal.set_wakeup_fd(-1)

    def _end_tasks(self) -> None:
        while self.tasks:
            for task in list(self.tasks):
                task.cancel()
            self._turn()

    def close(self) -> None:
        """Give back the loop's own descriptors, and the signals that nobody had taken before it."""
        for number, handler in self._took.items():
            signal.signal(number, handler)
            _TAKEN.discard(number)
        self._took.clear()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        """Run a coroutine beside the others."""
        return Task(self, coroutine)

    def soon(self, callback: Callable[[], None]) -> None:
        """Have something called in this turn or the next; it must not fail."""
        self._ready.append(callback)

    def future(self) -> Future[Any]:
        """Make a future."""
        return Future(self)

    def _turn(self) -> None:
        for fd, mask in self._epoll.poll(self._patience()):
            self._event(fd, mask)
        now = time.monotonic()
        while self._timers and (self._timers[0].callback is None or self._timers[0].at <= now):
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._ready.append(timer.callback)
        for _ in range(len(self._ready)):
            callback = self._ready.popleft()
            try:
                callback()
            except Exception as error:  # noqa: BLE001  # one broken callback must not end all containers' shim
                log.failure("callback failed", error)

    def _patience(self) -> float:
        if self._ready:
            return 0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        # A little too long rather than too short, which would turn the loop for nothing.
        return max(0.0, self._timers[0].at - time.monotonic()) + 0.001 if self._timers else -1

    # --- time -----------------------------------------------------------------------------------------------------

    def later(self, seconds: float, callback: Callable[[], None]) -> _Timer:
        """Have something called after a time; the answer's `cancel` withdraws it."""
        self._order += 1
        timer = _Timer(time.monotonic() + seconds, self._order, callback)
        if len(self._timers) > self._crowded:
            self._timers = [one for one in self._timers if one.callback is not None]
            heapq.heapify(self._timers)
            self._crowded = _KEPT_TIMERS + 2 * len(self._timers)
        heapq.heappush(self._timers, timer)
        return timer

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        future: Future[None] = Future(self)
        timer = self.later(seconds, lambda: future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()

    async def within(self, seconds: float, awaitable: Future[T] | Coroutine[Any, Any, T]) -> T:
        """Await, but raise TimeoutError after a time. A coroutine is cancelled then, a future is left alone."""
        inner = awaitable if isinstance(awaitable, Future) else self.spawn(awaitable)
        over: Future[None] = Future(self)

        def end() -> None:
            over.set_result(None)

        inner.add_callback(end)
        timer = self.later(seconds, end)
        try:
            await over
        finally:
            timer.cancel()
            inner.remove_callback(end)
            if inner is not awaitable and not inner.done():
                cast("Task[T]", inner).cancel()
        if not inner.done():
            raise TimeoutError(f"not done within {seconds:g} s")
        return inner.result()

    # --- descriptors ----------------------------------------------------------------------------------------------

    async def readable(self, fd: int) -> None:
        """Wait until reading gives bytes, the end or an error; at once for files that epoll does not know."""
        await self._wait(fd, 0)

    async def writable(self, fd: int) -> None:
        """Wait until writing takes bytes or gives an error; at once for files that epoll does not know."""
        await self._wait(fd, 1)

    async def _wait(self, fd: int, side: int) -> None:
        waiting = self._waiting.setdefault(fd, [None, None])
        assert waiting[side] is None, f"two tasks wait for descriptor {fd}"
        future: Future[None] = Future(self)
        waiting[side] = future
        try:
            self._arm(fd)
            await future
        except PermissionError:
            return
        finally:
            self._leave(fd, waiting, side, future)

    def _leave(self, fd: int, waiting: list[Future[None] | None], side: int, future: Future[None]) -> None:
        if waiting[side] is future:  # given up: what is armed for it wakes nobody
            waiting[side] = None
        if waiting == [None, None] and self._waiting.get(fd) is waiting:
            del self._waiting[fd]
            with suppress(OSError):
                self._epoll.unregister(fd)

    def _arm(self, fd: int) -> None:
        """Ask for one event of what is waited for. A closed descriptor is forgotten by the kernel alone."""
        reader, writer = self._waiting[fd]
        mask = (_READ if reader else 0) | (_WRITE if writer else 0) | select.EPOLLONESHOT
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)

    def _event(self, fd: int, mask: int) -> None:
        waiting = self._waiting.get(fd)
        if waiting is None:
            return
        for side, wanted in enumerate((_READ | _BROKEN, _WRITE | _BROKEN)):
            future = waiting[side]
            if future is not None and mask & wanted:
                waiting[side] = None
                future.set_result(None)
        if waiting != [None, None]:
            self._arm(fd)

    # --- signals and children -------------------------------------------------------------------------------------

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Have something called by the loop when a signal came."""
        self._signals[number] = callback
        if number not in _TAKEN:
            self._took[number] = signal.getsignal(number)
            take(number)

    async def _watch_signals(self) -> None:
        while True:
            await self.readable(self._wake_read)
            with suppress(BlockingIOError):
                for number in set(os.read(self._wake_read, 4096)):
                    self._signals.get(number, _nothing)()

    def child(self, pid: int) -> Future[ExitStatus]:
        """Await the end of a child; ask before awaiting anything after its start, or use `keeping_exits`."""
        future = self._children.get(pid)
        if future is None:
            future = self._children[pid] = Future(self)
        return future

    def keeping_exits(self) -> KeptExits:
        """Keep the exits that nobody asked for, for a `with` block."""
        return KeptExits(self)

    @contextmanager
    def leaving_strangers(self) -> Generator[None]:
        """For the block, do not bury processes that nobody asked for: their pids are used by a runtime meanwhile."""
        self._leaving += 1
        try:
            yield
        finally:
            self._leaving -= 1
            self.soon(self._reap)

    def _reap(self) -> None:
        if self._leaving:
            for pid in tuple(self._children):
                with suppress(ChildProcessError):
                    found, word = os.waitpid(pid, os.WNOHANG)
                    if found:
                        self._bury(pid, word)
            return
        while True:
            try:
                pid, word = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._bury(pid, word)

    def _bury(self, pid: int, word: int) -> None:
        code = os.waitstatus_to_exitcode(word)
        status = ExitStatus(128 - code if code < 0 else code, time.time_ns())
        future = self._children.pop(pid, None)
        if future is not None:
            future.set_result(status)
        for keeper in self.keepers:
            keeper.keep(pid, status)

    # --- work that blocks -----------------------------------------------------------------------------------------

    async def apart(self, function: Callable[[], None]) -> None:
        """Run something that may block, or that needs much memory for a moment, in a copy of this process.

        Raises OSError with the text of what it raised.
        """
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = os.fork()
            if pid == 0:
                _apart(function, write)
            status = await self.child(pid)
            if status:
                raise OSError(_told(read) or f"exit status {int(status)}")
        finally:
            os.close(read)
            os.close(write)


def _apart(function: Callable[[], None], write: int) -> NoReturn:
    """Be the copy: no turn of the loop ever runs here."""
    try:
        function()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  # told to whoever waits
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        os.write(write, text.encode(errors="replace")[:4096])
    finally:
        os._exit(1)


def _told(fd: int) -> str:
    with suppress(BlockingIOError):
        return os.read(fd, 4096).decode(errors="replace")
    return ""


def current() -> Loop:
    """Give the loop that runs in this process."""
    return _RUNNING[-1]


def take(number: int) -> None:
    """Let a signal reach a loop that runs, and do nothing otherwise; a process forked to run one inherits that."""
    signal.signal(number, _seen)
    _TAKEN.add(number)


# One process has one set of children and signals, so the running loop is a property of the process.
_RUNNING: Final[list[Loop]] = []
_TAKEN: Final[set[int]] = set()


def _seen(number: int, _frame: object) -> None:
    """Take a signal: its number is on its way through the wake-up pipe. Without a loop, children are buried here."""
    if number == signal.SIGCHLD and not _RUNNING:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _nothing() -> None:
    """Ignore a signal that nobody asked for."""
