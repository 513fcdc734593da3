"""A Runtime without shims: real processes of the test's own, the states and words of a shim around them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from moored.kernel.conformance.tasks import DETAILS
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from moored.kernel.namespaces import current_namespace
from moored.kernel.payloads import (
    Mount,
    Payload,
    TaskCreate,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskExit,
    TaskIO,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.tasks import Exit, NewTask, ProcessInfo, ProcessState, RuntimeInfo, Status, Stdio

NAMES = ("io.containerd.runc.v2",)
COUNTERS = TypedBytes("io.containerd.cgroups.v1.Metrics", b"\x12\x02\x08\x01")
"""One process."""
HELD = 'read -r _ </proc/self/fd/{} || exit 137; exec "$@"'
"""Has its pid from the beginning and runs what it was given when told."""


@dataclass
class Process:
    """Init or an exec."""

    words: Sequence[str]
    stdio: Stdio
    status: Status = Status.CREATED
    pid: int = 0
    held: int = -1
    fds: dict[str, int] = field(default_factory=dict)
    exit: asyncio.Future[Exit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    child: asyncio.subprocess.Process | None = None

    async def spawn(self, *, hold: bool) -> None:
        """Begin; a held one waits for `release`."""
        read, write = os.pipe() if hold else (-1, -1)
        words = ["/bin/sh", "-c", HELD.format(read), "sh", *self.words] if hold else self.words
        streams = {name: self._open(getattr(self.stdio, name), name) for name in ("stdin", "stdout", "stderr")}
        self.child = await asyncio.create_subprocess_exec(
            *words, **streams, pass_fds=[read] if hold else [], start_new_session=True
        )
        for name in ("stdout", "stderr"):
            self._close(name)
        if hold:
            os.close(read)
            self.held = write
        self.pid = self.child.pid

    def release(self) -> None:
        """Let a held one run."""
        os.write(self.held, b"\n")
        self.close()

    def close(self) -> None:
        """Give back what was for its start."""
        if self.held >= 0:
            os.close(self.held)
            self.held = -1

    def close_stdin(self) -> None:
        """Let it read the end."""
        self._close("stdin")
        self._close("stdin-end")

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send one; who has just ended is not told."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    async def ended(self) -> Exit:
        """Reap it."""
        assert self.child is not None
        code = await self.child.wait()
        self.close()
        self.close_stdin()
        return Exit(pid=self.pid, status=code if code >= 0 else 128 - code, exited_at=time.time_ns())

    def _open(self, path: str, name: str) -> int:
        if not path:
            return asyncio.subprocess.DEVNULL
        # Its other end is kept, so that the FIFO does not break before a client comes, or when it goes.
        fd = os.open(path, os.O_RDWR if name != "stdin" else os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        if name == "stdin":
            self.fds["stdin-end"] = os.open(path, os.O_WRONLY)
        self.fds[name] = fd
        return fd

    def _close(self, name: str) -> None:
        if name in self.fds:
            os.close(self.fds.pop(name))


class FakeTask:
    """A Task. stats is what it answers, `hang` makes it silent, `fault` makes it fail."""

    def __init__(self, runtime: FakeRuntime, namespace: str, id_: str, new: NewTask) -> None:
        self.namespace = namespace
        self.id = id_
        self.new = new
        self.counters: Callable[[], TypedBytes] = lambda: COUNTERS
        self.silent = asyncio.Event()
        self.silent.set()
        self.fault: Exception | None = None
        self.updates: list[tuple[TypedBytes, Mapping[str, str]]] = []
        self.checkpoints: dict[str, bytes] = {"inventory.img": b"criu"}
        self._pid = 0
        self._runtime = runtime
        self._processes: dict[str, Process] = {}
        self._reapers: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def _init(self) -> Process:
        return self._find("")

    def _find(self, exec_id: str) -> Process:
        if "" not in self._processes:
            raise NotFound(f"task {self.id} not found", bare=True)
        if exec_id not in self._processes:
            raise NotFound(f"process does not exist {exec_id}")
        return self._processes[exec_id]

    async def _answer(self) -> None:
        """Be as slow and as broken as the test wants."""
        await self.silent.wait()
        if self.fault is not None:
            raise self.fault

    async def create(self) -> None:
        words = json.loads(self.new.spec.value)["process"]["args"]
        if shutil.which(words[0]) is None:
            raise Unknown(f"OCI runtime create failed: exec: {words[0]!r}: no such file or directory")
        self._processes[""] = init = Process(words, self.new.stdio)
        await init.spawn(hold=True)
        self._pid = init.pid
        self._reap("", init)
        stdio = self.new.stdio
        await self._tell(
            "create",
            TaskCreate(
                container_id=self.id,
                bundle="/none",
                rootfs=tuple(Mount(type=m.type, source=m.source, options=m.options) for m in self.new.rootfs),
                io=TaskIO(stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal),
                checkpoint=self.new.checkpoint,
                pid=init.pid,
            ),
        )

    async def state(self, exec_id: str = "") -> ProcessState:
        await self._answer()
        found = self._find(exec_id)
        exit_ = found.exit.result() if found.exit.done() else Exit()
        return ProcessState(
            container_id=self.id,
            exec_id=exec_id,
            pid=found.pid,
            status=found.status,
            stdio=found.stdio,
            exit_status=exit_.status,
            exited_at=exit_.exited_at,
        )

    async def start(self, exec_id: str = "") -> int:
        await self._answer()
        found = self._find(exec_id)
        if found.status is not Status.CREATED:
            raise Unknown(f"cannot start a {found.status.name.lower()} process")
        if exec_id:
            await self._start_exec(exec_id, found)
        else:
            await self._tell("start", TaskStart(container_id=self.id, pid=found.pid))
            found.release()
        found.status = Status.RUNNING
        return found.pid

    async def _start_exec(self, exec_id: str, found: Process) -> None:
        if shutil.which(found.words[0]) is None:
            found.exit.set_result(Exit(status=255, exited_at=time.time_ns()))
            raise Unknown(f"OCI runtime exec failed: exec: {found.words[0]!r}: no such file or directory")
        await found.spawn(hold=False)
        await self._tell("exec-started", TaskExecStarted(container_id=self.id, exec_id=exec_id, pid=found.pid))
        self._reap(exec_id, found)

    async def exec(self, exec_id: str, spec: TypedBytes, stdio: Stdio) -> None:
        await self._answer()
        init = self._init
        if exec_id in self._processes:
            raise AlreadyExists(f"id {exec_id}")
        if init.status not in {Status.CREATED, Status.RUNNING}:
            raise Unknown(f"cannot exec in a {init.status.name.lower()} state")
        self._processes[exec_id] = Process(json.loads(spec.value)["args"], stdio)
        await self._tell("exec-added", TaskExecAdded(container_id=self.id, exec_id=exec_id))

    async def kill(self, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        await self._answer()
        found = self._find(exec_id)
        if not found.pid:
            raise FailedPrecondition("process not created")
        if found.status is Status.STOPPED:
            if everything and not exec_id:
                return
            raise NotFound("process already finished")
        for one in self._processes.values() if everything and not exec_id else [found]:
            if one.pid and one.status is not Status.STOPPED:
                one.signal(signal)

    async def pause(self) -> None:
        await self._freeze("pause", Status.RUNNING, Status.PAUSED, TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        await self._freeze("resume", Status.PAUSED, Status.RUNNING, TaskResumed(container_id=self.id))

    async def _freeze(self, verb: str, before: Status, after: Status, event: Payload) -> None:
        await self._answer()
        status = self._init.status
        if status is Status.CREATED:
            raise Unknown(f"cannot {verb} task in created state")
        if status is not before:
            what = "process" if (verb, status) == ("resume", Status.RUNNING) else "container"
            raise Unknown(f"cannot {verb} a {status.name.lower()} {what}")
        for one in self._processes.values():
            if one.pid and not one.exit.done():
                one.signal(signal.SIGSTOP if after is Status.PAUSED else signal.SIGCONT, group=True)
        self._init.status = after
        await self._tell(f"{verb}d".replace("ee", "e"), event)

    async def resize(self, width: int, height: int, exec_id: str = "") -> None:
        await self._answer()
        self._find(exec_id)

    async def close_stdin(self, exec_id: str = "") -> None:
        await self._answer()
        self._find(exec_id).close_stdin()

    async def pids(self) -> list[ProcessInfo]:
        await self._answer()
        if self._init.status is Status.STOPPED:
            return []
        details = {name: TypedBytes(DETAILS, b"\n" + bytes([len(name)]) + name.encode()) for name in self._processes}
        living = {name: one for name, one in self._processes.items() if one.pid and not one.exit.done()}
        return [ProcessInfo(one.pid, details[name] if name else None) for name, one in living.items()]

    async def checkpoint(self, path: str, options: TypedBytes | None) -> None:
        await self._answer()
        for name, data in self.checkpoints.items():
            with open(f"{path}/{name}", "wb") as file:  # noqa: ASYNC230, PTH123 - a few bytes
                file.write(data)

    async def update(self, resources: TypedBytes | None, annotations: Mapping[str, str]) -> None:
        await self._answer()
        if resources is None:
            raise InvalidArgument("resources are missing")
        self.updates.append((resources, annotations))

    async def stats(self) -> TypedBytes:
        await self._answer()
        if self._init.status is Status.STOPPED:
            raise NotFound("cgroup does not exist")
        return self.counters()

    async def wait(self, exec_id: str = "") -> Exit:
        await self._answer()
        return await asyncio.shield(self._find(exec_id).exit)

    async def delete(self, exec_id: str = "") -> Exit:
        await self._answer()
        found = self._find(exec_id)
        if found.status in {Status.RUNNING, Status.PAUSED}:
            raise Unknown(f"cannot delete a {found.status.name.lower()} process")
        exit_ = found.exit.result() if found.exit.done() else Exit(pid=found.pid)
        if not exec_id:
            await self.close()
            self._runtime.tasks.pop((self.namespace, self.id), None)
            event = TaskDelete(container_id=self.id, pid=exit_.pid, exit_status=exit_.status, exited_at=exit_.exited_at)
            await self._tell("delete", event)
            self._processes.clear()
        else:
            del self._processes[exec_id]
        return exit_

    def die(self) -> None:
        """Be gone without a word, as a task whose shim has died is."""
        self._runtime.tasks.pop((self.namespace, self.id), None)

    async def close(self) -> None:
        """End and reap everything."""
        for one in self._processes.values():
            if one.pid and not one.exit.done():
                one.signal(signal.SIGKILL, group=True)
                one.signal(signal.SIGCONT, group=True)
        while self._reapers:
            await asyncio.wait(self._reapers)

    def _reap(self, exec_id: str, process: Process) -> None:
        task = asyncio.create_task(self._follow(exec_id, process))
        self._reapers.add(task)
        task.add_done_callback(self._reapers.discard)

    async def _follow(self, exec_id: str, process: Process) -> None:
        exit_ = await process.ended()
        if not exec_id:
            execs = [one for name, one in self._processes.items() if name and one.pid and not one.exit.done()]
            for one in execs:
                one.signal(signal.SIGKILL, group=True)
            if execs:
                await asyncio.wait([one.exit for one in execs])
        process.status = Status.STOPPED
        process.exit.set_result(exit_)
        await self._tell(
            "exit",
            TaskExit(
                container_id=self.id,
                id=exec_id or self.id,
                pid=exit_.pid,
                exit_status=exit_.status,
                exited_at=exit_.exited_at,
            ),
        )

    async def _tell(self, topic: str, event: Payload) -> None:
        await self._runtime.exchange.publish(f"/tasks/{topic}", event, self.namespace)


class FakeRuntime:
    """The Runtime; infos is what its other names tell of themselves, or how they fail to."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.tasks: dict[tuple[str, str], FakeTask] = {}
        self.made: list[NewTask] = []
        self.fault: Exception | None = None
        self.infos: dict[str, RuntimeInfo | Exception] = {}

    async def info(self, runtime: str, options: TypedBytes | None = None) -> RuntimeInfo:
        found = self.infos[runtime]
        if isinstance(found, Exception):
            raise found
        return found

    async def create(self, container_id: str, new: NewTask) -> FakeTask:
        name = (current_namespace(), container_id)
        self.made.append(new)
        if self.fault is not None:
            raise self.fault
        if name in self.tasks:
            raise AlreadyExists(f"task {container_id}")
        if new.runtime not in (*NAMES, *self.infos):
            if "/" in new.runtime and not new.runtime.startswith("/"):
                raise InvalidArgument(f"invalid runtime name {new.runtime!r}")
            raise NotFound(f"runtime {new.runtime!r} is not installed")
        self.tasks[name] = task = FakeTask(self, *name, new)
        try:
            await task.create()
        except BaseException:
            del self.tasks[name]
            raise
        return task

    def get(self, container_id: str) -> FakeTask:
        found = self.tasks.get((current_namespace(), container_id))
        if found is None:
            raise NotFound(f"task {container_id} not found", bare=True)
        return found

    def list(self, *, everywhere: bool = False) -> list[FakeTask]:
        namespace = "" if everywhere else current_namespace()
        return [task for task in self.tasks.values() if everywhere or task.namespace == namespace]

    async def close(self) -> None:
        """End what is left."""
        for task in list(self.tasks.values()):
            await task.close()


@asynccontextmanager
async def fake_runtime(exchange: Exchange) -> AsyncGenerator[FakeRuntime]:
    """Give one, whose processes are gone after the block."""
    runtime = FakeRuntime(exchange)
    try:
        yield runtime
    finally:
        await runtime.close()
