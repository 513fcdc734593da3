"""Which tasks are started again, when, and how."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from harness import on_loop
from moored.kernel.conformance import refuses
from moored.kernel.conformance.tasks import spec
from moored.kernel.errors import InvalidArgument, NotFound, Unavailable
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import Container
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import CreateTask, ProcessState, Status, Stdio
from moored.plugins.monitors.restart.backoff import Backoff
from moored.plugins.monitors.restart.monitor import SECOND_NS, Plan, RestartMonitor
from moored.plugins.monitors.restart.policy import Policy, read_policy, restarts, wants_start
from unit.tasks.world import Opened, opened

RESTART = "io.containerd.monitor.container.v1.restart"
PREFIX = "containerd.io/restart."
INTERVAL = 10.0


def labels(**given: str) -> dict[str, str]:
    return {PREFIX + name.replace("_", "-"): value for name, value in given.items()}


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", Policy("always")),
        ("always", Policy("always")),
        ("no", Policy("no")),
        ("unless-stopped", Policy("unless-stopped")),
        ("on-failure", Policy("on-failure")),
        ("on-failure:10", Policy("on-failure", 10)),
        ("on-failure:10:3", Policy("on-failure", 10)),
    ],
)
def test_policies_are_read(text: str, wanted: Policy) -> None:
    assert read_policy(text) == wanted


@pytest.mark.parametrize("text", ["sometimes", "always:3", "unless-stopped:1", "on-failure:", "on-failure:x", "Always"])
def test_other_policies_are_refused_by_name(text: str) -> None:
    assert repr(text) in refuses(InvalidArgument, lambda: read_policy(text)).text


@pytest.mark.parametrize(
    ("given", "exit_status", "wanted"),
    [
        (labels(policy="always"), 0, True),
        (labels(), 0, True),
        (labels(policy="no"), 1, False),
        (labels(policy="on-failure"), 0, False),
        (labels(policy="on-failure"), 1, True),
        (labels(policy="on-failure", count="99"), 1, True),
        (labels(policy="on-failure:10", count="1"), 0, False),
        (labels(policy="on-failure:10"), 1, True),
        (labels(policy="on-failure:10", count="9"), 1, True),
        (labels(policy="on-failure:3", count="3"), 1, False),
        (labels(policy="unless-stopped"), 0, True),
        (labels(policy="unless-stopped", explicitly_stopped="true"), 0, False),
        (labels(policy="unless-stopped", explicitly_stopped="false"), 0, True),
        (labels(policy="always", explicitly_stopped="true"), 0, True),
    ],
)
def test_policy_decides_by_exit_and_count(given: dict[str, str], exit_status: int, wanted: bool) -> None:
    assert wants_start(given, exit_status) is wanted


def test_count_that_is_no_number_is_refused() -> None:
    refuses(InvalidArgument, lambda: wants_start(labels(policy="on-failure:3", count="invalid"), 1))
    assert restarts(labels(count="12")) == 12
    assert restarts({}) == 0


# --- back-off ---------------------------------------------------------------------------------------------------------


def test_short_runs_in_a_row_put_the_next_start_off() -> None:
    backoff = Backoff(10, 100)
    pauses = []
    for number in range(8):
        backoff.begin(number * 1000.0)
        backoff.ended(number * 1000.0 + 9)
        backoff.ended(number * 1000.0 + 500)  # looked at again
        pauses.append(backoff.due - number * 1000.0)
    assert pauses == [0, 0, 20, 40, 80, 100, 100, 100]
    backoff.begin(0)
    backoff.ended(10)
    assert backoff.pause == 0


# --- the monitor ------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """A monitor that looks when told, over tasks of the fake runtime, and its clock."""

    world: Opened
    monitor: RestartMonitor
    log: list[Any]
    now: list[float]

    async def look(self, after: float = INTERVAL) -> None:
        """Look, so much later, and wait for what it does."""
        self.now[0] += after
        async with asyncio.TaskGroup() as group:
            await self.monitor.look(group)

    async def state(self, id_: str = "c1") -> ProcessState | None:
        with bind("one"):
            try:
                return await self.world.tasks.get(id_)
            except NotFound:
                return None

    async def pid(self, id_: str = "c1") -> int:
        """The pid of a running task, 0 if it does not run."""
        found = await self.state(id_)
        return found.pid if found is not None and found.status is Status.RUNNING else 0

    async def run(self, id_: str = "c1") -> int:
        with bind("one"):
            await self.world.tasks.create(CreateTask(container_id=id_))
            return await self.world.tasks.start(id_)

    async def kill(self, id_: str = "c1") -> None:
        with bind("one"):
            await self.world.tasks.kill(id_, 9)
            await self.world.tasks.wait(id_)

    async def count(self, id_: str = "c1") -> str:
        with bind("one"):
            return (await self.world.objects.containers.get(id_)).labels.get(f"{PREFIX}count", "")


@asynccontextmanager
async def watched(folder: Path, *, give_up: float = 20, **more: Any) -> AsyncGenerator[Watch]:
    async with opened(folder, **more) as world:
        now = [time.time() + 1]
        plan = Plan(interval=INTERVAL, max_backoff=300, timeout=give_up)
        with capture_logs() as logs:
            monitor = RestartMonitor(
                world.tasks, world.objects, plan, structlog.get_logger(), lambda: int(now[0] * SECOND_NS)
            )
            yield Watch(world, monitor, logs, now)


@on_loop
async def test_ended_task_is_started_again_and_counted(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", labels=labels(status="running"))
        first = await watch.run()
        await watch.look()
        assert await watch.pid() == first
        await watch.kill()
        await watch.look()
        second = await watch.pid()
        assert second not in {0, first}
        assert await watch.count() == "1"
        await watch.kill()
        await watch.look()
        assert await watch.pid() not in {0, second}
        assert await watch.count() == "2"


@on_loop
async def test_container_without_task_gets_one_once_no_client_is_at_it(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", labels=labels(status="running"))
        await watch.look(after=INTERVAL / 2)
        assert await watch.state() is None
        await watch.look()
        assert await watch.pid()


@on_loop
async def test_created_task_is_left_to_its_client_for_an_interval(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", labels=labels(status="running"))
        with bind("one"):
            pid = await watch.world.tasks.create(CreateTask(container_id="c1"))
        await watch.look()
        found = await watch.state()
        assert found is not None
        assert (found.pid, found.status) == (pid, Status.CREATED)
        await watch.look()
        assert await watch.pid() not in {0, pid}


@on_loop
async def test_containers_that_ask_for_nothing_are_left_alone(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        given = {
            "plain": {},
            "odd": labels(status="created"),
            "never": labels(status="running", policy="no"),
            "given-up": labels(status="running", policy="unless-stopped", explicitly_stopped="1"),
            "well": labels(status="running", policy="on-failure"),
        }
        for name, own in given.items():
            await watch.world.container(name, "true", labels=own)
            await watch.run(name)
            with bind("one"):
                await watch.world.tasks.wait(name)
        await watch.look()
        for name in given:
            found = await watch.state(name)
            assert found is not None
            assert (name, found.status) == (name, Status.STOPPED)


@on_loop
async def test_paused_and_unanswering_tasks_are_left_alone(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        for name in ("paused", "hung"):
            await watch.world.container(name, labels=labels(status="running"))
            await watch.run(name)
        with bind("one"):
            await watch.world.tasks.pause("paused")
            hung = watch.world.runtime.get("hung")
        hung.fault = Unavailable("ttrpc: closed")
        await watch.look()
        found = await watch.state("paused")
        assert found is not None
        assert found.status is Status.PAUSED
        hung.fault = None
        assert await watch.pid("hung") == hung.pid
        assert [one["reason"] for one in watch.log if "reason" in one] == ["ttrpc: closed"]


@on_loop
async def test_failures_are_restarted_up_to_their_number(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        own = labels(status="running", policy="on-failure:2")
        await watch.world.container("c1", "sh", "-c", "exit 3", labels=own)
        await watch.run()
        for _ in range(4):
            with bind("one"):
                await watch.world.tasks.wait("c1")
            await watch.look(after=1000)
        assert await watch.count() == "2"


@on_loop
async def test_task_that_is_to_be_stopped_is_killed_and_deleted(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", labels=labels(status="stopped"))
        await watch.look()
        assert await watch.state() is None
        await watch.run()
        await watch.look()
        assert await watch.state() is None
        assert watch.log == []


@on_loop
async def test_ended_task_that_is_to_be_stopped_stays_for_its_client(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", labels=labels(status="stopped"))
        await watch.run()
        await watch.kill()
        await watch.look()
        found = await watch.state()
        assert found is not None
        assert found.status is Status.STOPPED


@pytest.mark.parametrize(
    ("listed", "then", "status"), [("running", "stopped", "STOPPED"), ("stopped", "running", "RUNNING")]
)
@on_loop
async def test_label_that_changes_before_the_task_does_decides(
    listed: str, then: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path) as watch:
        tasks, containers = watch.world.tasks, watch.world.objects.containers
        container = await watch.world.container("c1", labels=labels(status=listed))
        await watch.run()
        if then == "stopped":
            await watch.kill()
        get = tasks.get

        async def late(id_: str) -> ProcessState:
            changed = replace(container, labels=labels(status=then))
            await containers.update(changed, [f"labels.{PREFIX}status"])
            return await get(id_)

        with monkeypatch.context() as patch:
            patch.setattr(tasks, "get", late)
            await watch.look()
        found = await watch.state()
        assert found is not None
        assert found.status is Status[status]


@on_loop
async def test_only_containers_whose_tasks_are_not_as_wanted_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path) as watch:
        containers = watch.world.objects.containers
        for name, status in (("runs", "running"), ("ends", "running"), ("never", "stopped")):
            await watch.world.container(name, labels=labels(status=status))
        await watch.run("runs")
        await watch.run("ends")
        await watch.kill("ends")
        get, read = containers.get, Counter[str]()

        async def counted(id_: str) -> Container:
            read[id_] += 1
            return await get(id_)

        monkeypatch.setattr(containers, "get", counted)
        # The tasks read each once, for themselves.
        await watch.look()
        assert (read.pop("runs"), read.pop("never")) == (1, 1)
        assert read.pop("ends") > 1
        await watch.look()
        assert read == {"runs": 1, "ends": 1, "never": 1}


@on_loop
async def test_task_that_keeps_ending_is_started_less_and_less(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", "false", labels=labels(status="running"))
        started = []
        for look in range(1, 17):
            before = await watch.count()
            await watch.look()
            if await watch.count() != before:
                started.append(look)
                with bind("one"):
                    await watch.world.tasks.wait("c1")
        assert started == [1, 2, 3, 5, 9]


@on_loop
async def test_failing_create_is_put_off_like_a_short_run(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("c1", "/no/such/program", labels=labels(status="running"))
        for _ in range(16):
            await watch.look()
        assert await watch.count() == "5"
        reasons = {one["reason"] for one in watch.log if "reason" in one}
        assert len(reasons) == 1
        assert "/no/such/program" in reasons.pop()


@on_loop
async def test_failing_container_holds_up_no_other(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        await watch.world.container("a", labels=labels(status="running", policy="sometimes"))
        await watch.world.container("b", spec=None, labels=labels(status="running"))
        await watch.world.container("c", snapshotter="none", snapshot_key="k", labels=labels(status="running"))
        await watch.world.container("d", labels=labels(status="running"))
        await watch.look()
        assert await watch.pid("d")
        assert {one["container"] for one in watch.log if one["log_level"] == "warning"} == {"a", "b", "c"}


@on_loop
async def test_hanging_change_is_left_to_itself_and_given_up(tmp_path: Path) -> None:
    async with watched(tmp_path, give_up=1) as watch:
        await watch.world.container("hung", labels=labels(status="running"))
        await watch.run("hung")
        with bind("one"):
            hung = watch.world.runtime.get("hung")
        hung.silent.clear()
        async with asyncio.TaskGroup() as group:
            watch.now[0] += INTERVAL
            await watch.monitor.look(group)
            await watch.world.container("c1", labels=labels(status="running"))
            watch.now[0] += INTERVAL
            await watch.monitor.look(group)
            async with asyncio.timeout(3):
                while not await watch.pid("c1"):
                    await asyncio.sleep(0.01)  # nothing tells
        assert [one["container"] for one in watch.log if "too long" in one["event"]] == ["hung"]
        hung.silent.set()


@on_loop
async def test_new_task_has_the_container_s_rootfs_and_log(tmp_path: Path) -> None:
    async with watched(tmp_path) as watch:
        labelled = spec("c1", "sleep", "1000").value.replace(b'"linux": {', b'"linux": {"mountLabel": "a:b", ')
        labelled = labelled.replace(b'"terminal": false', b'"terminal": true')
        made = spec("c1", "sleep", "1000")
        await watch.world.container(
            "c1",
            spec=type(made)(made.type_url, labelled),
            snapshotter="native",
            snapshot_key="key",
            labels=labels(status="running", loguri=f"file://{tmp_path}/log"),
        )

        class Shown:
            async def mounts(self, key: str) -> list[Mount]:
                assert key == "key"
                return [Mount(type="bind", source="/root/fs", options=("rbind", "rw"))]

        objects = watch.world.objects
        objects.snapshotter = lambda name: Shown()  # type: ignore[method-assign, assignment, return-value]
        await watch.look()
        # The fake opens no URLs: what it was asked for is what counts.
        (new,) = watch.world.runtime.made
        uri = f"file://{tmp_path}/log"
        assert new.stdio == Stdio(stdout=uri, stderr=uri, terminal=True)
        assert list(new.rootfs) == [Mount(type="bind", source="/root/fs", options=("rbind", "rw", 'context="a:b"'))]


@on_loop
async def test_plugin_restarts_by_itself_and_says_what_it_can(tmp_path: Path) -> None:
    async with opened(tmp_path, RESTART, **{RESTART: {"interval": 0.02}}) as world:
        record = world.kernel.record(RESTART)
        assert record.outcome is Outcome.OK
        assert set(record.capabilities) == {"no", "always", "on-failure", "unless-stopped"}
        async with world.exchange.subscribe('topic=="/tasks/start"') as starts:
            await world.container("c1", labels=labels(status="running"))
            async with asyncio.timeout(10):
                await anext(starts)
                with bind("one"):
                    await world.tasks.kill("c1", 9)
                await anext(starts)
