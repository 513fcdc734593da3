"""When garbage is collected: after deletions, after many writes, when asked, and when something expires.

    start ── startup_delay ──> run
    deletion ────────────────────────────────────────── slot ──> run      slot: interval after the need or the last run
    mutation_threshold writes ───────────────── slot and rest ──> run     rest: 15 times what a run takes on average
    deletion_threshold deletions, collect_now ── schedule_delay ──> run
    lease or image expires ──────────────────────────────────────> run    not before the last run's slot

The interval keeps the pauses of writers at pause_threshold of the time, and the collector itself at a fifth of it.
Between these nothing wakes the daemon. Source: semantics 5.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import MooredError, Unavailable, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.ports.objects import Collection, Objects
from moored.kernel.rfc3339 import parse_ns

EXPIRE: Final = "containerd.io/gc.expire"
"""Label of leases and images: when they may go (RFC 3339)."""

MIN_AVERAGE_SECONDS: Final = 0.005
"""What the average pause counts at least."""
MAX_PAUSE_THRESHOLD: Final = 0.5
UNTHROTTLED_SECONDS: Final = 1.0
"""The interval without a pause_threshold."""
REST: Final = 4
"""An interval is at least so many times the average length of a run."""
WRITES_REST: Final = 15
"""After writes that deleted nothing there is little to find, so that the collector takes a twentieth of the time."""
RETRY_SECONDS: Final = 1.0
"""Added to the interval after a run that failed."""
LOOK_SECONDS: Final = 0.5
"""After a write, until what will expire is looked up; at least LOOK_REST times what the last look took."""
LOOK_REST: Final = 20
MAX_SLEEP_SECONDS: Final = 60.0
"""Longest wait for an expiry, so that a clock that was set is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings, in seconds and counts; what is out of bounds counts as the bound."""

    pause_threshold: float
    deletion_threshold: int
    mutation_threshold: int
    schedule_delay: float
    startup_delay: float

    def interval(self, average_pause: float, average_seconds: float) -> float:
        """Give the time from the end of a run to the next slot."""
        threshold = min(max(self.pause_threshold, 0.0), MAX_PAUSE_THRESHOLD)
        if not threshold:
            return max(UNTHROTTLED_SECONDS, REST * average_seconds)
        pause = max(average_pause, MIN_AVERAGE_SECONDS)
        return max(pause / threshold - pause, REST * average_seconds)


Tell = Callable[[Collection | None], None]
"""Told of each run: what it did, None where it failed. On the event loop; must be quick and never raise."""


class GcScheduler:
    """The port's Scheduler; `run` is its life. All of it on one event loop."""

    def __init__(
        self,
        objects: Objects,
        plan: Plan,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], int] = time.time_ns,
        tell: Tell = lambda _done: None,
    ) -> None:
        self._wall_clock = wall_clock
        self._tell = tell
        self._objects = objects
        self._plan = plan
        self._log = log
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[Collection]] = []
        self._stopped = False
        self._deletions = 0
        self._mutations = 0
        self._asked_at = 0.0
        self._needed_at: float | None = None
        """When there was first reason for a run at the next slot, on the loop's clock; likewise all `_at`."""
        self._written_at: float | None = None
        self._flooded_at: float | None = None
        self._first_at: float | None = None
        self._last_at: float | None = None
        self._interval = UNTHROTTLED_SECONDS
        self._pauses = 0.0
        self._seconds = 0.0
        self._runs = 0
        self._look_at: float | None = None
        self._look_cost = 0.0
        self._judged = 0
        """What expired before this moment (ns since 1970) has been judged; some of it may have been kept."""
        self._expiry: int | None = None
        """When the next object expires, ns since 1970, as far as known."""

    async def collect_now(self) -> Collection:
        """See the port. Raises Unavailable once the daemon stops."""
        if self._stopped:
            raise Unavailable("garbage collector has stopped")
        waiter: asyncio.Future[Collection] = asyncio.get_running_loop().create_future()
        if not self._waiters:
            self._asked_at = self._now()
        self._waiters.append(waiter)
        self._wake.set()
        return await waiter

    def changed(self, deleted: bool) -> None:
        """Take note of a write."""
        now = self._now()
        self._mutations += 1
        self._deletions += deleted
        plan = self._plan
        if self._needed_at is None and self._deletions:
            self._needed_at = now
            self._wake.set()
        if self._written_at is None and 0 < plan.mutation_threshold <= self._mutations:
            self._written_at = now
            self._wake.set()
        if self._flooded_at is None and 0 < plan.deletion_threshold <= self._deletions:
            self._flooded_at = now
            self._wake.set()
        if self._look_at is None:
            self._look_at = now + max(LOOK_SECONDS, LOOK_REST * self._look_cost)
            self._wake.set()

    async def run(self) -> None:
        """Collect when it is due, until cancelled."""
        if self._plan.startup_delay > 0:
            self._first_at = self._now() + self._plan.startup_delay
        try:
            while True:
                await self._sleep()
                if self._is_over(self._look_at):
                    await self._look()
                if self._is_over(self._due()):
                    await self._collect()
        finally:
            self._stopped = True
            _settle(self._waiters, lambda waiter: waiter.set_exception(Unavailable("garbage collector has stopped")))

    async def _sleep(self) -> None:
        """Wait until something is due or has changed."""
        times = [at for at in (self._due(), self._look_at, self._expires_at()) if at is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(times, default=None)):
                await self._wake.wait()
        self._wake.clear()

    def _due(self) -> float | None:
        """Give when the next run is due."""
        delay = max(self._plan.schedule_delay, 0.0)
        times: list[float] = []
        if self._first_at is not None:
            times.append(self._first_at)
        if self._waiters:
            times.append(self._asked_at + delay)
        if self._flooded_at is not None:
            times.append(self._flooded_at + delay)
        # Without a first run there is no slot, unless one is planned.
        slots = self._first_at is not None or self._last_at is not None
        if self._needed_at is not None:
            times.append(self._slot(self._needed_at) if slots else self._needed_at + delay)
        if self._written_at is not None:
            rest = WRITES_REST * self._seconds / self._runs if self._runs else 0.0
            times.append(self._slot(self._written_at) + rest if slots else self._written_at + delay)
        if self._expiry is not None and self._expiry < self._wall_clock():
            times.append((self._last_at or 0.0) + self._interval)
        return min(times, default=None)

    def _slot(self, at: float) -> float:
        return max(at, self._last_at or at) + self._interval

    def _expires_at(self) -> float | None:
        """Give when to look again whether the next expiry is over."""
        if self._expiry is None:
            return None
        left = (self._expiry - self._wall_clock()) / 1e9
        # What is over already is a matter of `_due`.
        return None if left < 0 else self._now() + min(left + 0.001, MAX_SLEEP_SECONDS)

    async def _look(self) -> None:
        """Find out what expires next among leases and images."""
        self._look_at = None
        began = time.monotonic()
        try:
            expiries = [expiry async for expiry in self._expiries()]
        except MooredError as error:
            self._log.warning("cannot look up what expires", error=error.text)
            return
        finally:
            self._look_cost = time.monotonic() - began
        self._expiry = min(expiries, default=None)

    async def _expiries(self) -> AsyncGenerator[int]:
        labelled = (f'labels."{EXPIRE}"',)
        # A clock that was set back must not hide what expires until it has caught up.
        self._judged = min(self._judged, self._wall_clock())
        for namespace, _ in await self._objects.namespaces.list():
            with bind(namespace=namespace, lease=""):
                labels = [lease.labels for lease in await self._objects.leases.list(labelled)]
                labels += [image.labels for image in await self._objects.images.list(labelled)]
            for found in labels:
                expiry = parse_ns(found[EXPIRE])
                if expiry is not None and expiry >= self._judged:
                    yield expiry

    async def _collect(self) -> None:
        waiters, self._waiters = self._waiters, []
        counted = self._deletions, self._mutations
        self._deletions = self._mutations = 0
        self._first_at = self._needed_at = self._written_at = self._flooded_at = None
        began = self._wall_clock()
        try:
            done = await self._objects.collect()
        except Exception:  # noqa: BLE001 - whatever it was, there will be a next run
            self._log.exception("garbage collection failed")
            self._failed(counted)
            _settle(waiters, lambda waiter: waiter.set_exception(Unknown("gc failed")))
        except BaseException:
            self._waiters += waiters
            raise
        else:
            self._judged = began
            self._succeeded(done)
            _settle(waiters, lambda waiter: waiter.set_result(done))

    def _succeeded(self, done: Collection) -> None:
        self._tell(done)
        self._runs += 1
        self._pauses += done.pause_seconds
        self._seconds += done.seconds
        self._interval = self._plan.interval(self._pauses / self._runs, self._seconds / self._runs)
        self._last_at = self._now()
        self._expiry = done.next_expiry
        if any(done.removed.values()):
            self._log.debug("collected garbage", seconds=round(done.seconds, 3), removed=dict(done.removed))

    def _failed(self, counted: tuple[int, int]) -> None:
        self._tell(None)
        self._deletions += counted[0]
        self._mutations += counted[1]
        # At the slot, not at once, whatever asked for it.
        self._needed_at = self._now()
        self._last_at = self._needed_at + RETRY_SECONDS

    def _is_over(self, at: float | None) -> bool:
        return at is not None and at <= self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _settle(
    waiters: Iterable[asyncio.Future[Collection]], settle: Callable[[asyncio.Future[Collection]], None]
) -> None:
    for waiter in waiters:
        if not waiter.done():
            settle(waiter)


@asynccontextmanager
async def scheduled(
    objects: Objects,
    plan: Plan,
    log: FilteringBoundLogger,
    wall_clock: Callable[[], int] = time.time_ns,
    tell: Tell = lambda _done: None,
) -> AsyncGenerator[GcScheduler]:
    """Run a scheduler for the block; leaving it lets a collection under way end. The clock gives ns since 1970."""
    scheduler = GcScheduler(objects, plan, log, wall_clock, tell)
    end = objects.on_change(scheduler.changed)
    task = asyncio.create_task(scheduler.run(), name="gc-scheduler")
    try:
        yield scheduler
    finally:
        end()
        task.cancel()
        await asyncio.wait([task])
