"""What every `Runtime` and its tasks do; each check takes a fresh one without tasks.

Tasks run real programs: `World.rootfs` shows a Linux file system with `/bin/sh`, `/bin/sleep` and `/bin/cat`, and the
folders `/proc` and `/dev`. A runtime that needs no such thing (a fake) may run the words of the spec where it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.namespaces import bind, current_namespace
from moored.kernel.payloads import (
    Packed,
    Payload,
    TaskCreate,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskExit,
    TaskPaused,
    TaskResumed,
    TaskStart,
    unpack,
)
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.events import Envelope, Exchange
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import Exit, NewTask, Runtime, Status, Stdio, Task

SECONDS: Final = 20.0
"""Within which everything that is to come must have come."""
SPEC: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
DETAILS: Final = "containerd.runc.v1.ProcessDetails"
"""Type of what `pids` says about an exec."""
COUNTERS: Final = ("io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics")
FOREVER: Final = ("sleep", "1000")

P = TypeVar("P", bound=Payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One fresh runtime, the exchange that its events go to, and what tasks are made of.

    folder        an empty folder for FIFOs and files
    namespace     that tasks are in; NAMESPACE-2 is used too
    cgroup        that tasks' cgroups are made in
    name          of the runtime, as containers give it
    rootfs        mounts that show the file system, writable
    options       of every task
    cgroups       whether tasks have cgroups, to be frozen, limited and measured
    kills_frozen  whether SIGKILL ends a paused task; without it has to be resumed before
    tells_delete  whether the end of a task is always told; shims of containerd may end before they have told it
    """

    runtime: Runtime
    exchange: Exchange
    folder: Path
    namespace: str = "one"
    cgroup: str = "/conformance"
    name: str = "io.containerd.runc.v2"
    rootfs: Sequence[Mount] = ()
    options: TypedBytes | None = None
    cgroups: bool = True
    kills_frozen: bool = True
    tells_delete: bool = True


Check: TypeAlias = Callable[[World], Awaitable[None]]


# --- what tasks are made of -------------------------------------------------------------------------------------------


def process(*words: str, terminal: bool = False) -> TypedBytes:
    """Give an OCI process that runs words found on PATH."""
    return TypedBytes(PROCESS, json.dumps(_process(words, terminal)).encode())


def spec(cgroup: str, *words: str, terminal: bool = False) -> TypedBytes:
    """Give an OCI spec that runs words in namespaces of its own."""
    made = {
        "ociVersion": "1.0.2",
        "process": _process(words, terminal),
        "root": {"path": "rootfs"},
        "hostname": "conformance",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
    }
    return TypedBytes(SPEC, json.dumps(made).encode())


def new_task(world: World, name: str, *words: str, stdio: Stdio = Stdio(), **more: Any) -> NewTask:  # noqa: B008
    """Give all that makes a task of the current namespace run words."""
    made = spec(f"{world.cgroup}/{current_namespace()}-{name}", *words, terminal=stdio.terminal)
    given = {"runtime": world.name, "options": world.options, "rootfs": world.rootfs, "stdio": stdio, **more}
    return NewTask(spec=made, **given)


def _process(words: Sequence[str], terminal: bool) -> dict[str, Any]:
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(words),
        "env": ["PATH=/usr/bin:/bin"],
        "cwd": "/",
    }


@asynccontextmanager
async def made(world: World, name: str, *words: str, stdio: Stdio = Stdio()) -> AsyncGenerator[Task]:  # noqa: B008
    """Create a task, which is gone after the block."""
    task = await world.runtime.create(name, new_task(world, name, *words, stdio=stdio))
    try:
        yield task
    finally:
        await gone(task)


@asynccontextmanager
async def running(world: World, name: str, *words: str, stdio: Stdio = Stdio()) -> AsyncGenerator[Task]:  # noqa: B008
    """Create and start a task, which is gone after the block."""
    async with made(world, name, *words, stdio=stdio) as task:
        await task.start()
        yield task


async def gone(task: Task) -> None:
    """Kill and delete a task, whatever its state."""
    async with asyncio.timeout(SECONDS):
        with suppress(MooredError):
            await task.kill(signal.SIGKILL, everything=True)
            await task.wait()
        with suppress(MooredError):
            await task.delete()


async def ended(task: Task, exec_id: str = "") -> Exit:
    """Wait for the end of a process."""
    async with asyncio.timeout(SECONDS):
        return await task.wait(exec_id)


# --- what is told -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Told:
    """The events of tasks since `listening` began, as (namespace, topic, payload)."""

    events: AsyncIterator[Envelope]
    seen: list[tuple[str, str, Payload | None]] = field(default_factory=list)

    async def to(self, topic: str, count: int = 1) -> None:
        """Wait until a topic has been seen so often."""
        async with asyncio.timeout(SECONDS):
            while self.topics().count(topic) < count:
                one = await anext(self.events)
                payload = unpack(Packed(one.type_url, one.payload or b""))
                self.seen.append((one.namespace, one.topic.removeprefix("/tasks/"), payload))

    def topics(self) -> list[str]:
        """Give the topics, without `/tasks/`, in order."""
        return [topic for _, topic, _ in self.seen]

    def payloads(self, kind: type[P]) -> list[P]:
        """Give the payloads of one kind, in order."""
        return [payload for _, _, payload in self.seen if isinstance(payload, kind)]


@asynccontextmanager
async def listening(world: World) -> AsyncGenerator[Told]:
    """Collect what is told of tasks from now on."""
    async with world.exchange.subscribe("topic~=|^/tasks/|") as events:
        yield Told(events)


# --- init -------------------------------------------------------------------------------------------------------------


async def check_task_runs_from_create_to_delete(world: World) -> None:
    """Created, running under the same pid, stopped with its status and time, then gone."""
    with bind(world.namespace):
        before = time.time_ns()
        async with made(world, "c1", "sh", "-c", "exit 3") as task:
            assert (task.id, task.namespace) == ("c1", world.namespace)
            assert task.pid > 0
            state = await task.state()
            assert (state.container_id, state.exec_id, state.pid) == ("c1", "", task.pid)
            assert (state.status, state.exit_status, state.exited_at) == (Status.CREATED, 0, None)
            assert await task.start() == task.pid
            exit_ = await ended(task)
            assert exit_.status == 3
            assert exit_.exited_at is not None
            assert before < exit_.exited_at <= time.time_ns()
            state = await task.state()
            assert (state.status, state.exit_status, state.exited_at) == (Status.STOPPED, 3, exit_.exited_at)
            deleted = await task.delete()
            assert (deleted.pid, deleted.status, deleted.exited_at) == (state.pid, 3, exit_.exited_at)
        refuses(NotFound, lambda: world.runtime.get("c1"), "task c1 not found")
        assert world.runtime.list() == []


async def check_events_tell_what_happened_in_order(world: World) -> None:
    """Create with streams and pid, start, exit, delete, each in the task's namespace."""
    with bind(world.namespace):
        async with listening(world) as told:
            async with running(world, "c1", "sh", "-c", "exit 7") as task:
                pid = task.pid
                exit_ = await ended(task)
                await told.to("exit")
            wanted = ["create", "start", "exit"]
            if world.tells_delete:
                await told.to("delete")
                wanted.append("delete")
    assert told.topics()[: len(wanted)] == wanted
    assert {namespace for namespace, _, _ in told.seen} == {world.namespace}
    (create,) = told.payloads(TaskCreate)
    assert (create.container_id, create.pid, create.checkpoint) == ("c1", pid, "")
    assert [mount.source for mount in create.rootfs] == [mount.source for mount in world.rootfs]
    assert told.payloads(TaskStart) == [TaskStart(container_id="c1", pid=pid)]
    wanted_exit = TaskExit(container_id="c1", id="c1", pid=pid, exit_status=7, exited_at=exit_.exited_at)
    assert told.payloads(TaskExit) == [wanted_exit]
    for delete in told.payloads(TaskDelete):
        assert (delete.container_id, delete.pid, delete.exit_status) == ("c1", pid, 7)
        assert delete.exited_at == exit_.exited_at


async def check_id_is_taken_once_in_a_namespace(world: World) -> None:
    """A second one is refused and leaves the first alone; another namespace has ids of its own."""
    other_namespace = f"{world.namespace}-2"
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            again = world.runtime.create("c1", new_task(world, "c1", *FOREVER))
            await fails_with(AlreadyExists, again)
            assert (await task.state()).status is Status.RUNNING
            with bind(other_namespace):
                refuses(NotFound, lambda: world.runtime.get("c1"), "task c1 not found")
                async with running(world, "c1", "sh", "-c", "exit 5") as other:
                    assert (await ended(other)).status == 5
                    assert [one.namespace for one in world.runtime.list()] == [other_namespace]
                    everywhere = sorted((one.namespace, one.id) for one in world.runtime.list(everywhere=True))
                    assert everywhere == [(world.namespace, "c1"), (other_namespace, "c1")]
            assert (await task.state()).status is Status.RUNNING
            assert world.runtime.get("c1").pid == task.pid


async def check_failed_create_leaves_nothing(world: World) -> None:
    """Nor does it tell of anything; the id is free."""
    with bind(world.namespace):
        async with listening(world) as told:
            await fails_with(Unknown, world.runtime.create("c1", new_task(world, "c1", "/no/such/program")))
            assert world.runtime.list() == []
            async with made(world, "c1", *FOREVER):
                await told.to("create")
            assert told.topics() == ["create"]


async def check_missing_runtime_is_told(world: World) -> None:
    """By name and by path, and leaves nothing."""
    with bind(world.namespace):
        for name in ("io.example.nosuch.v9", "/no/such/shim"):
            await fails_with(NotFound, world.runtime.create("c1", new_task(world, "c1", *FOREVER, runtime=name)))
        await fails_with(
            InvalidArgument, world.runtime.create("c1", new_task(world, "c1", *FOREVER, runtime="some/shim"))
        )
        assert world.runtime.list() == []


async def check_wait_gives_everybody_the_same(world: World) -> None:
    """Before the start, beside each other, after the end; a waiter that gives up takes nothing from the others."""
    with bind(world.namespace):
        async with made(world, "c1", "sh", "-c", "exit 9") as task:
            early = [asyncio.create_task(task.wait()) for _ in range(3)]
            await asyncio.sleep(0)
            early[0].cancel()
            await asyncio.wait([early[0]])
            await task.start()
            async with asyncio.timeout(SECONDS):
                exits = [await early[1], await early[2], await task.wait()]
            assert len({(one.status, one.exited_at) for one in exits}) == 1
            assert exits[0].status == 9
            await task.delete()
            await fails_with(NotFound, task.wait())


async def check_signals_end_it_with_their_number(world: World) -> None:
    """128 and the signal's number; signal 0 changes nothing; what ended cannot be killed, but all of it can."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            await task.kill(0)
            assert (await task.state()).status is Status.RUNNING
            await task.kill(signal.SIGKILL)
            assert (await ended(task)).status == 137
            await fails_with(NotFound, task.kill(signal.SIGKILL), "process already finished")
            await task.kill(signal.SIGKILL, everything=True)


async def check_created_task_can_be_killed_or_deleted(world: World) -> None:
    """Killed it ends with 137; deleted it has no status and no time."""
    with bind(world.namespace):
        async with made(world, "c1", *FOREVER) as task:
            await task.kill(signal.SIGKILL)
            assert (await ended(task)).status == 137
            assert (await task.state()).status is Status.STOPPED
        async with made(world, "c2", *FOREVER) as task:
            deleted = await task.delete()
            assert (deleted.status, deleted.exited_at) == (0, None)
        assert world.runtime.list() == []


async def check_states_forbid_what_they_must(world: World) -> None:
    """With containerd's words; the task goes on."""
    with bind(world.namespace):
        async with made(world, "c1", *FOREVER) as task:
            await fails_with(Unknown, task.pause(), "cannot pause task in created state")
            await fails_with(Unknown, task.resume(), "cannot resume task in created state")
            await task.start()
            await fails_with(Unknown, task.start(), "cannot start a running process")
            await fails_with(Unknown, task.delete(), "cannot delete a running process")
            await fails_with(Unknown, task.resume(), "cannot resume a running process")
            assert (await task.state()).status is Status.RUNNING
            await task.kill(signal.SIGKILL)
            await ended(task)
            await fails_with(Unknown, task.start(), "cannot start a stopped process")
            await fails_with(Unknown, task.pause(), "cannot pause a stopped container")
            await fails_with(Unknown, task.exec("e1", process(*FOREVER), Stdio()), "cannot exec in a stopped state")


async def check_deleted_task_is_not_found(world: World) -> None:
    """By every call that needs it, through the object that was the task's."""
    with bind(world.namespace):
        async with made(world, "c1", *FOREVER) as task:
            await task.delete()
            for call in (
                task.start,
                task.pause,
                task.resume,
                task.pids,
                task.stats,
                task.delete,
                lambda: task.kill(signal.SIGKILL),
                lambda: task.exec("e1", process(*FOREVER), Stdio()),
            ):
                await fails_with(NotFound, call())


# --- execs ------------------------------------------------------------------------------------------------------------


async def check_exec_runs_from_exec_to_delete(world: World) -> None:
    """Created without a pid, running, stopped, gone; init does not notice."""
    with bind(world.namespace):
        async with listening(world) as told, running(world, "c1", *FOREVER) as task:
            await task.exec("e1", process("sh", "-c", "exit 4"), Stdio())
            state = await task.state("e1")
            assert (state.exec_id, state.status, state.pid) == ("e1", Status.CREATED, 0)
            await fails_with(AlreadyExists, task.exec("e1", process(*FOREVER), Stdio()), "id e1")
            waiting = asyncio.create_task(task.wait("e1"))
            pid = await task.start("e1")
            assert pid not in {0, task.pid}
            async with asyncio.timeout(SECONDS):
                exit_ = await waiting
            assert exit_.status == 4
            state = await task.state("e1")
            assert (state.status, state.exit_status, state.exited_at) == (Status.STOPPED, 4, exit_.exited_at)
            deleted = await task.delete("e1")
            assert (deleted.pid, deleted.status, deleted.exited_at) == (pid, 4, exit_.exited_at)
            await fails_with(NotFound, task.state("e1"))
            assert (await task.state()).status is Status.RUNNING
            await told.to("exit")
    assert told.topics() == ["create", "start", "exec-added", "exec-started", "exit"]
    assert told.payloads(TaskExecAdded) == [TaskExecAdded(container_id="c1", exec_id="e1")]
    assert told.payloads(TaskExecStarted) == [TaskExecStarted(container_id="c1", exec_id="e1", pid=pid)]
    wanted = TaskExit(container_id="c1", id="e1", pid=pid, exit_status=4, exited_at=exit_.exited_at)
    assert told.payloads(TaskExit) == [wanted]


async def check_unknown_exec_is_not_found(world: World) -> None:
    """By every call that names one."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            for call in (
                lambda: task.state("e1"),
                lambda: task.start("e1"),
                lambda: task.wait("e1"),
                lambda: task.delete("e1"),
                lambda: task.kill(signal.SIGKILL, exec_id="e1"),
                lambda: task.close_stdin("e1"),
                lambda: task.resize(80, 25, "e1"),
            ):
                await fails_with(NotFound, call(), "process does not exist e1")


async def check_exec_that_was_not_started_can_be_deleted_but_not_killed(world: World) -> None:
    """It leaves nothing; its id is free."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            await task.exec("e1", process(*FOREVER), Stdio())
            await fails_with(FailedPrecondition, task.kill(signal.SIGKILL, exec_id="e1"), "process not created")
            await task.delete("e1")
            await task.exec("e1", process(*FOREVER), Stdio())
            await task.delete("e1")


async def check_exec_that_cannot_start_stays_created(world: World) -> None:
    """With the runtime's reason; it can be deleted."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            await task.exec("e1", process("/no/such/program"), Stdio())
            error = await fails_with(Unknown, task.start("e1"))
            assert "/no/such/program" in error.text
            assert (await task.state()).status is Status.RUNNING
            await task.delete("e1")


async def check_exec_is_killed_alone(world: World) -> None:
    """Also when all were asked for; init and others run on."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            for name in ("e1", "e2"):
                await task.exec(name, process(*FOREVER), Stdio())
                await task.start(name)
            await task.kill(signal.SIGKILL, exec_id="e1", everything=True)
            assert (await ended(task, "e1")).status == 137
            await fails_with(NotFound, task.kill(signal.SIGKILL, exec_id="e1"), "process already finished")
            assert (await task.state("e2")).status is Status.RUNNING
            assert (await task.state()).status is Status.RUNNING


async def check_execs_end_before_init(world: World) -> None:
    """Init's end takes them along, and is told last; a process of its own is no longer to be had."""
    with bind(world.namespace):
        async with listening(world) as told, running(world, "c1", *FOREVER) as task:
            await task.exec("e1", process(*FOREVER), Stdio())
            await task.start("e1")
            await task.kill(signal.SIGKILL)
            assert (await ended(task, "e1")).status == 137
            assert (await ended(task)).status == 137
            await told.to("exit", 2)
            assert [one.id for one in told.payloads(TaskExit)] == ["e1", "c1"]


async def check_pids_are_those_of_the_host(world: World) -> None:
    """Init and execs, these with their ids; none once it stopped."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            await task.exec("e1", process(*FOREVER), Stdio())
            pid = await task.start("e1")
            found = {one.pid: one.info for one in await task.pids()}
            assert found.keys() == {task.pid, pid}
            assert found[task.pid] is None
            assert found[pid] == TypedBytes(DETAILS, b"\n\x02e1")
            await task.kill(signal.SIGKILL)
            await ended(task)
            assert await task.pids() == []


# --- cgroups ----------------------------------------------------------------------------------------------------------


async def check_paused_task_stands_still(world: World) -> None:
    """It can be resumed, or killed as it is; meanwhile nothing is added to it."""
    if not world.cgroups:
        return
    with bind(world.namespace):
        async with listening(world) as told, running(world, "c1", *FOREVER) as task:
            await task.pause()
            assert (await task.state()).status is Status.PAUSED
            await fails_with(Unknown, task.pause(), "cannot pause a paused container")
            await fails_with(Unknown, task.exec("e1", process(*FOREVER), Stdio()), "cannot exec in a paused state")
            await fails_with(Unknown, task.delete(), "cannot delete a paused process")
            await task.resume()
            assert (await task.state()).status is Status.RUNNING
            await task.pause()
            await told.to("paused", 2)
            assert told.topics() == ["create", "start", "paused", "resumed", "paused"]
            assert told.payloads(TaskPaused) == [TaskPaused(container_id="c1")] * 2
            assert told.payloads(TaskResumed) == [TaskResumed(container_id="c1")]
            if not world.kills_frozen:
                await task.resume()
            await task.kill(signal.SIGKILL)
            assert (await ended(task)).status == 137


async def check_task_is_measured_and_limited(world: World) -> None:
    """Counters of a known type; resources have to be given."""
    if not world.cgroups:
        return
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            stats = await task.stats()
            assert stats.type_url in COUNTERS
            assert stats.value
            await task.update(TypedBytes(RESOURCES, b'{"pids":{"limit":100}}'), {})
            await fails_with(InvalidArgument, task.update(None, {}))


# --- streams ----------------------------------------------------------------------------------------------------------


async def check_output_and_input_go_through_fifos(world: World) -> None:
    """Byte for byte, both streams apart; input ends once it is closed on both sides."""
    stdin, stdout, stderr = (world.folder / name for name in ("in", "out", "err"))
    for path in (stdin, stdout, stderr):
        os.mkfifo(path, 0o600)
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in (stdout, stderr)]
    stdio = Stdio(stdin=str(stdin), stdout=str(stdout), stderr=str(stderr))
    try:
        with bind(world.namespace):
            async with made(world, "c1", "sh", "-c", "cat; echo err >&2", stdio=stdio) as task:
                assert (await task.state()).stdio == stdio
                await task.start()
                writer = await asyncio.to_thread(os.open, stdin, os.O_WRONLY)
                os.write(writer, b"given\n")
                os.close(writer)
                await task.close_stdin()
                assert (await ended(task)).status == 0
                await task.delete()
            assert [await _read_to_end(fd) for fd in readers] == [b"given\n", b"err\n"]
    finally:
        for fd in readers:
            os.close(fd)


async def check_terminal_calls_work_without_a_terminal(world: World) -> None:
    """Resizing changes nothing, closing an input that is not there neither."""
    with bind(world.namespace):
        async with running(world, "c1", *FOREVER) as task:
            await task.resize(80, 25)
            await task.close_stdin()
            assert (await task.state()).status is Status.RUNNING


async def _read_to_end(fd: int) -> bytes:
    """Give what is in a FIFO that nobody writes to any more."""
    found = b""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                await asyncio.sleep(0.01)  # its writer has not closed it yet, which nothing tells
                continue
            if not data:
                return found
            found += data


def checks() -> list[Check]:
    """Give all of them, in the order above."""
    return [value for name, value in globals().items() if name.startswith("check_")]
