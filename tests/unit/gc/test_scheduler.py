"""When a collection is run, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from moored.kernel.errors import NotFound, Unavailable, Unknown
from moored.kernel.ports.leases import Lease
from moored.kernel.ports.objects import Collection
from moored.plugins.gc.scheduler.scheduler import EXPIRE, GcScheduler, Plan, scheduled
from unit.gc.clock import run

DEFAULTS = Plan(
    pause_threshold=0.02, deletion_threshold=0, mutation_threshold=100, schedule_delay=0.0, startup_delay=0.1
)
SLOT = 0.245
"""5 ms of pause in 2 % of the time."""
START = 1_800_000_000 * 10**9
"""Wall clock, ns since 1970, at the loop's 0."""


def plan(**changes: Any) -> Plan:
    values = {name: getattr(DEFAULTS, name) for name in DEFAULTS.__slots__}
    return Plan(**{**values, **changes})


@dataclass
class Objects:
    """The part of the object database that a scheduler sees; notes when it is told to collect."""

    lasts: float = 0.0
    pause: float = 0.0
    fails: int = 0
    begun: list[float] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    next_expiry: int | None = None
    listeners: list[Callable[[bool], None]] = field(default_factory=list)
    looks: int = 0

    @property
    def namespaces(self) -> Any:
        return self

    @property
    def leases(self) -> Any:
        return _Leases(self)

    @property
    def images(self) -> Any:
        return _Leases(Objects())

    async def list(self) -> list[tuple[str, Mapping[str, str]]]:
        return [("ns", {})]

    async def collect(self) -> Collection:
        self.begun.append(round(asyncio.get_running_loop().time(), 3))
        await asyncio.sleep(self.lasts)
        if self.fails:
            self.fails -= 1
            raise NotFound("something")
        now = wall()
        self.held = {name: at for name, at in self.held.items() if in_ns(at) >= now}
        expiries = [in_ns(at) for at in self.held.values()]
        return Collection(
            pause_seconds=self.pause,
            seconds=self.lasts,
            removed={},
            next_expiry=min(expiries, default=self.next_expiry),
        )

    def on_change(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def write(self, *, deleted: bool = False) -> None:
        for listener in self.listeners:
            listener(deleted)


@dataclass
class _Leases:
    objects: Objects

    async def list(self, filters: Any) -> list[Lease]:
        self.objects.looks += 1
        return [Lease(id=name, labels={EXPIRE: at}) for name, at in self.objects.held.items()]


def wall() -> int:
    return START + round(asyncio.get_running_loop().time() * 1e9)


def in_ns(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e9)


def after(seconds: float) -> str:
    return datetime.fromtimestamp(START / 1e9 + seconds, UTC).isoformat()


@asynccontextmanager
async def at_work(objects: Objects, settings: Plan = DEFAULTS) -> AsyncGenerator[GcScheduler]:
    async with scheduled(objects, settings, structlog.get_logger(), wall) as scheduler:  # type: ignore[arg-type]
        yield scheduler


def test_first_run_comes_after_the_startup_delay_and_no_other() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects):
            await asyncio.sleep(1000)
        assert objects.begun == [0.1]

    run(body())


def test_deletion_is_followed_at_the_slot() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects):
            await asyncio.sleep(0.2)
            objects.write(deleted=True)
            objects.write(deleted=True)
            await asyncio.sleep(10)
            objects.write(deleted=True)
            await asyncio.sleep(10)
        assert objects.begun == [0.1, pytest.approx(0.2 + SLOT), pytest.approx(10.2 + SLOT)]

    run(body())


def test_writes_are_followed_from_the_threshold_on() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects, plan(mutation_threshold=3)):
            await asyncio.sleep(1)
            objects.write()
            objects.write()
            await asyncio.sleep(100)
            objects.write()
            await asyncio.sleep(100)
        assert objects.begun == [0.1, pytest.approx(101 + SLOT)]

    run(body())


@pytest.mark.parametrize(("deleted", "begins"), [(True, 5.1), (False, 20.1)])
def test_writes_that_deleted_nothing_give_a_long_collector_more_rest(deleted: bool, begins: float) -> None:
    async def body() -> None:
        objects = Objects(lasts=1.0)
        async with at_work(objects, plan(mutation_threshold=1)):
            await asyncio.sleep(1.0)
            objects.write(deleted=deleted)
            await asyncio.sleep(50)
        assert objects.begun == [0.1, begins]

    run(body())


def test_no_mutation_threshold_leaves_writes_alone() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects, plan(mutation_threshold=0, startup_delay=0.0)):
            for _ in range(500):
                objects.write()
            await asyncio.sleep(100)
        assert objects.begun == []

    run(body())


def test_many_deletions_are_followed_after_the_schedule_delay() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects, plan(deletion_threshold=2, schedule_delay=0.05)):
            await asyncio.sleep(1)
            objects.write(deleted=True)
            objects.write(deleted=True)
            await asyncio.sleep(10)
        assert objects.begun == [0.1, pytest.approx(1.05)]

    run(body())


@pytest.mark.parametrize(
    ("pause", "threshold", "slot"), [(0.1, 0.02, 4.9), (0.1, 0.9, 0.1), (0.1, 0.0, 1.0), (0.1, -1, 1.0)]
)
def test_slot_keeps_pauses_at_the_threshold(pause: float, threshold: float, slot: float) -> None:
    assert plan(pause_threshold=threshold).interval(pause, 0.0) == pytest.approx(slot)


def test_long_runs_rest_between() -> None:
    assert DEFAULTS.interval(0.001, 3.0) == pytest.approx(12.0)


def test_who_asks_gets_a_run_that_began_later() -> None:
    async def body() -> None:
        objects = Objects(lasts=1.0)
        async with at_work(objects) as scheduler:
            await asyncio.sleep(0.5)
            first, second = await asyncio.gather(scheduler.collect_now(), scheduler.collect_now())
            assert first is second
        assert objects.begun == [0.1, 1.1]

    run(body())


def test_failed_run_fails_who_asked_and_is_tried_again_at_the_slot() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects) as scheduler:
            await asyncio.sleep(1)
            objects.fails = 1
            with pytest.raises(Unknown, match=r"^gc failed$"):
                await scheduler.collect_now()
            await asyncio.sleep(10)
            assert (await scheduler.collect_now()).removed == {}
        assert objects.begun == [0.1, 1.0, pytest.approx(2.0 + SLOT), pytest.approx(11.0)]

    run(body())


def test_first_run_that_fails_is_not_tried_without_a_pause() -> None:
    async def body() -> None:
        objects = Objects(fails=3)
        async with at_work(objects):
            await asyncio.sleep(100)
        assert len(objects.begun) == 4
        assert objects.begun[1] >= 1.0

    run(body())


def test_stopping_ends_waits() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects, plan(schedule_delay=100.0)) as scheduler:
            await asyncio.sleep(1)
            call = asyncio.ensure_future(scheduler.collect_now())
            await asyncio.sleep(1)
        with pytest.raises(Unavailable):
            await call
        with pytest.raises(Unavailable):
            await scheduler.collect_now()
        assert objects.listeners == []

    run(body())


def test_expiry_known_from_the_last_run_is_followed() -> None:
    async def body() -> None:
        objects = Objects(held={"l": after(3600)})
        async with at_work(objects):
            await asyncio.sleep(7200)
        assert objects.begun == [0.1, pytest.approx(3600, abs=0.1)]
        assert objects.held == {}

    run(body())


def test_expiry_of_a_new_lease_is_found_and_followed() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects):
            await asyncio.sleep(10)
            objects.held["l"] = after(30)
            objects.write()
            await asyncio.sleep(100)
            objects.held["m"] = after(110.2)
            objects.write()
            await asyncio.sleep(100)
        assert objects.begun == [0.1, pytest.approx(30, abs=0.1), pytest.approx(110.6, abs=0.2)]

    run(body())


def test_what_expired_and_is_kept_is_not_judged_again_and_again() -> None:
    class Kept(Objects):
        async def collect(self) -> Collection:
            held = dict(self.held)
            done = await super().collect()
            self.held = held
            return done

    async def body() -> None:
        objects = Kept(held={"l": after(5)})
        async with at_work(objects):
            for _ in range(100):
                await asyncio.sleep(1)
                objects.write()
        assert objects.begun == [0.1, pytest.approx(5, abs=0.1)]

    run(body())


def test_clock_set_forward_is_noticed_within_a_minute() -> None:
    async def body() -> None:
        objects, ahead = Clocked(held={"l": after(3600)}), Ahead()
        objects.ahead = ahead
        async with scheduled(objects, DEFAULTS, structlog.get_logger(), ahead):
            await asyncio.sleep(10)
            ahead.ns = 7200 * 10**9
            await asyncio.sleep(100)
        assert len(objects.begun) == 2
        assert 10 <= objects.begun[1] <= 71
        assert objects.held == {}

    run(body())


def test_clock_set_back_does_not_hide_what_expires() -> None:
    async def body() -> None:
        objects, ahead = Clocked(), Ahead()
        objects.ahead = ahead
        async with scheduled(objects, DEFAULTS, structlog.get_logger(), ahead):
            await asyncio.sleep(10)
            ahead.ns = -7200 * 10**9
            objects.held["l"] = after(-7200 + 40)
            objects.write()
            await asyncio.sleep(100)
        assert objects.begun == [0.1, pytest.approx(40, abs=0.1)]
        assert objects.held == {}

    run(body())


@dataclass
class Ahead:
    """A wall clock that can be set."""

    ns: int = 0

    def __call__(self) -> int:
        return wall() + self.ns


class Clocked(Objects):
    """Judges what has expired by the same clock."""

    ahead: Ahead

    async def collect(self) -> Collection:
        held = {name: at for name, at in self.held.items() if in_ns(at) >= self.ahead()}
        self.held = {}
        done = await super().collect()
        self.held = held
        return replace(done, next_expiry=min(map(in_ns, held.values()), default=None))


def test_idle_daemon_is_not_woken() -> None:
    async def body() -> None:
        objects = Objects()
        async with at_work(objects):
            objects.write()
            await asyncio.sleep(5)
            looks = objects.looks
            await asyncio.sleep(100_000)
            assert objects.looks == looks == 1

    run(body())
