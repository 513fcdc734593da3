"""What runs in a container: its task, which is the first process, and the processes that are added to it.

    created --start--> running --exit--> stopped --delete--> gone

Source: contracts/semantics.md 4, contracts/shim-v2.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal as signals
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from google.protobuf.timestamp_pb2 import Timestamp

from moored.api.client.connection import Calls, ConnectionLost
from moored.api.client.resources import RESOURCES_TYPE, Resources
from moored.api.client.signalnames import signal_number
from moored.api.client.spec import NO_TEXTS, PROCESS_TYPE, process
from moored.api.client.stdio import PIPES, Input, Io, Output, Streams, made
from moored.api.client.users import NOBODY_KNOWN, User, is_numeric, read_accounts, resolve
from moored.api.client.wire import descriptor_of, nanoseconds, typed_bytes
from moored.api.convert import pack, to_ns
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.services.tasks.v1 import tasks_pb2_grpc
from moored.api.types.runc.options import oci_pb2
from moored.api.types.task import task_pb2
from moored.kernel.closing import at_end
from moored.kernel.errors import FailedPrecondition, NotFound
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.tasks import Exit, Metric, ProcessInfo, ProcessState, Status, Stdio

LOST_SECONDS: Final = 60.0
"""How long a wait goes on while the daemon is away: processes outlive it, and their exits are known after."""
_PAUSE: Final = 0.2
_STATUSES: Final = frozenset(map(int, Status))


class Process:
    """A process of a container, and the client's ends of its streams. As a context manager: ended and gone after it.

    Errors, beside those of the connection: NotFound once it is deleted, FailedPrecondition and Unknown with what the
    runtime says. Concurrency: any calls may overlap. Cancellation: the caller stops waiting, nothing else changes.
    """

    def __init__(self, calls: Calls, container_id: str, exec_id: str, streams: Streams, pid: int = 0) -> None:
        self._calls = calls
        self._stub = tasks_pb2_grpc.TasksStub(calls.channel)
        self._container_id = container_id
        self._exec_id = exec_id
        self._streams = streams
        self._pid = pid

    @property
    def container_id(self) -> str:
        """The container's."""
        return self._container_id

    @property
    def exec_id(self) -> str:
        """Which process of the container; empty for its first."""
        return self._exec_id

    @property
    def pid(self) -> int:
        """Its pid on the host, 0 before an added process was started."""
        return self._pid

    @property
    def stdin(self) -> Input | None:
        """Where it reads, None if there is nothing to write to."""
        return self._streams.stdin

    @property
    def stdout(self) -> Output | None:
        """What it writes, None if that goes elsewhere."""
        return self._streams.stdout

    @property
    def stderr(self) -> Output | None:
        """What it complains, None if that goes elsewhere or there is a terminal."""
        return self._streams.stderr

    async def start(self) -> int:
        """Run it and give its pid."""
        request = pb.StartRequest(container_id=self._container_id, exec_id=self._exec_id)
        self._pid = (await self._calls.unary(self._stub.Start, request)).pid
        return self._pid

    async def wait(self) -> Exit:
        """Wait for its end, also before it was started and after it ended; the daemon may restart meanwhile."""
        request = pb.WaitRequest(container_id=self._container_id, exec_id=self._exec_id)
        lost = 0.0
        while True:
            try:
                answer = await self._calls.unary(self._stub.Wait, request, slow=True)
                return Exit(pid=self._pid, status=answer.exit_status, exited_at=to_ns(answer.exited_at))
            except ConnectionLost:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > LOST_SECONDS:
                    raise
            await asyncio.sleep(_PAUSE)

    async def kill(self, signal: int | str = signals.SIGTERM, *, everything: bool = False) -> None:
        """Send a signal, by number or name, to it or to everything in the container. Raises NotFound if it ended."""
        request = pb.KillRequest(
            container_id=self._container_id, exec_id=self._exec_id, signal=signal_number(signal), all=everything
        )
        await self._calls.unary(self._stub.Kill, request)

    async def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal, in characters; without a terminal nothing happens."""
        request = pb.ResizePtyRequest(
            container_id=self._container_id, exec_id=self._exec_id, width=width, height=height
        )
        await self._calls.unary(self._stub.ResizePty, request)

    async def close_stdin(self) -> None:
        """Let it read the end of its input, once every client has closed its own end."""
        if self._streams.stdin is not None:
            self._streams.stdin.abandon()
        request = pb.CloseIORequest(container_id=self._container_id, exec_id=self._exec_id, stdin=True)
        await self._calls.unary(self._stub.CloseIO, request)

    async def state(self) -> ProcessState:
        """Ask how it is."""
        request = pb.GetRequest(container_id=self._container_id, exec_id=self._exec_id)
        return process_state((await self._calls.unary(self._stub.Get, request)).process, self._container_id)

    async def delete(self, *, force: bool = False) -> Exit:
        """Forget it and give how it ended; force kills it before. Its streams are closed.

        Raises FailedPrecondition or Unknown for one that runs.
        """
        if force:
            await self._ended()
        deleted = await self._delete()
        self._streams.close()
        return Exit(pid=deleted.pid, status=deleted.exit_status, exited_at=to_ns(deleted.exited_at))

    async def _delete(self) -> pb.DeleteResponse:
        request = pb.DeleteProcessRequest(container_id=self._container_id, exec_id=self._exec_id)
        return await self._calls.unary(self._stub.DeleteProcess, request)

    async def _ended(self) -> None:
        if (await self.state()).status in {Status.STOPPED, Status.CREATED}:
            return
        with suppress(NotFound):
            await self.kill(signals.SIGKILL, everything=not self._exec_id)
        await self.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with suppress(NotFound):
                await at_end(self.delete(force=True), error)
        finally:
            self._streams.close()


class Task(Process):
    """The first process of a container, and all others with it."""

    async def _delete(self) -> pb.DeleteResponse:
        return await self._calls.unary(self._stub.Delete, pb.DeleteTaskRequest(container_id=self._container_id))

    async def pause(self) -> None:
        """Freeze all processes."""
        await self._calls.unary(self._stub.Pause, pb.PauseTaskRequest(container_id=self._container_id))

    async def resume(self) -> None:
        """Thaw them."""
        await self._calls.unary(self._stub.Resume, pb.ResumeTaskRequest(container_id=self._container_id))

    async def pids(self) -> list[ProcessInfo]:
        """List all processes in the container, by their pids on the host; empty once it stopped."""
        answer = await self._calls.unary(self._stub.ListPids, pb.ListPidsRequest(container_id=self._container_id))
        return [
            ProcessInfo(one.pid, typed_bytes(one.info) if one.HasField("info") else None) for one in answer.processes
        ]

    async def metrics(self) -> Metric:
        """Read the counters of its cgroup (`io.containerd.cgroups.v1.Metrics`, or v2). Raises NotFound for none."""
        answer = await self._calls.unary(self._stub.Metrics, pb.MetricsRequest(filters=[f'id=="{self._container_id}"']))
        if not answer.metrics:
            raise NotFound(f"task {self._container_id} has no metrics")
        found = answer.metrics[0]
        return Metric(id=found.id, timestamp=nanoseconds(found.timestamp), data=typed_bytes(found.data))

    async def update(
        self, resources: Resources | Mapping[str, Any], annotations: Mapping[str, str] | None = None
    ) -> None:
        """Change its limits; a mapping is a LinuxResources of the runtime spec."""
        document = resources.document() if isinstance(resources, Resources) else dict(resources)
        request = pb.UpdateTaskRequest(
            container_id=self._container_id,
            resources=pack(json.dumps(document).encode(), RESOURCES_TYPE),
            annotations=annotations or {},
        )
        await self._calls.unary(self._stub.Update, request)

    async def exec(
        self,
        args: Sequence[str],
        io: Io = PIPES,
        *,
        exec_id: str = "",
        env: Mapping[str, str | None] = NO_TEXTS,
        cwd: str = "",
        user: str = "",
        privileged: bool = False,
    ) -> Process:
        """Add a process, which `start` runs; as the container's own but for what is given.

        A user's name is looked up in the container's files. Raises AlreadyExists for an exec id that is taken.
        """
        base = await self._base_process()
        who = await asyncio.to_thread(self._user, user) if user else None
        document = process(base, args, env=env, cwd=cwd, user=who, terminal=io.is_terminal, privileged=privileged)
        return await self.exec_process(document, io, exec_id=exec_id)

    async def exec_process(self, document: Mapping[str, Any], io: Io = PIPES, *, exec_id: str = "") -> Process:
        """Add a process that is given as the runtime spec has it. Raises as `exec`."""
        exec_id = exec_id or f"exec-{os.urandom(8).hex()}"
        streams = opened_streams(self._calls, self._container_id, exec_id, io)
        stdio = streams.stdio
        request = pb.ExecProcessRequest(
            container_id=self._container_id,
            exec_id=exec_id,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
            spec=pack(json.dumps(dict(document)).encode(), PROCESS_TYPE),
        )
        try:
            await self._calls.unary(self._stub.Exec, request)
        except BaseException:
            streams.close()
            raise
        return Process(self._calls, self._container_id, exec_id, streams)

    async def process(self, exec_id: str, *, attach: bool = False) -> Process:
        """Find a process that was added; attach opens its streams again. Raises NotFound."""
        request = pb.GetRequest(container_id=self._container_id, exec_id=exec_id)
        state = process_state((await self._calls.unary(self._stub.Get, request)).process, self._container_id)
        streams = attached_streams(self._calls, state, attach=attach)
        return Process(self._calls, self._container_id, exec_id, streams, state.pid)

    async def checkpoint(
        self,
        *,
        exit: bool = False,  # noqa: A002 - the option's name
        path: str = "",
        work_path: str = "",
        options: oci_pb2.CheckpointOptions | None = None,
    ) -> list[Descriptor]:
        """Write its state (CRIU), into the content store unless a folder is given, and end it if so wanted.

        Gives what was stored, which nothing refers to: hold a lease. Without a deadline.
        """
        wanted = oci_pb2.CheckpointOptions()
        if options is not None:
            wanted.CopyFrom(options)
        wanted.exit = wanted.exit or exit
        wanted.image_path, wanted.work_path = path or wanted.image_path, work_path or wanted.work_path
        request = pb.CheckpointTaskRequest(container_id=self._container_id, options=pack(wanted))
        answer = await self._calls.unary(self._stub.Checkpoint, request, slow=True)
        return [descriptor_of(one) for one in answer.descriptors]

    async def _base_process(self) -> Mapping[str, Any]:
        from moored.api.client.containers import Containers

        container = await Containers(self._calls).get(self._container_id)
        found = (await container.spec()).get("process")
        return found if isinstance(found, dict) else {"cwd": "/", "user": {"uid": 0, "gid": 0}}

    def _user(self, text: str) -> User:
        root = Path(f"/proc/{self._pid}/root")
        try:
            return resolve(text, read_accounts(root))
        except (OSError, FailedPrecondition):
            if is_numeric(text):
                return resolve(text, NOBODY_KNOWN)
            raise FailedPrecondition(
                f"user {text!r} cannot be looked up: the container's files are out of reach"
            ) from None


def opened_streams(calls: Calls, container_id: str, exec_id: str, io: Io) -> Streams:
    """Make and open the streams of a new process."""
    return made(io, exec_id or container_id, calls.connection.fifo_folder, _close_io(calls, container_id, exec_id))


def attached_streams(calls: Calls, state: ProcessState, *, attach: bool) -> Streams:
    """Open the streams of a process that is there, none without `attach`."""
    stdio = state.stdio if attach else Stdio()
    begun = not state.exec_id or state.status is not Status.CREATED
    return Streams(stdio, _close_io(calls, state.container_id, state.exec_id), begun=begun)


def _close_io(calls: Calls, container_id: str, exec_id: str) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        request = pb.CloseIORequest(container_id=container_id, exec_id=exec_id, stdin=True)
        with suppress(NotFound):
            await calls.unary(tasks_pb2_grpc.TasksStub(calls.channel).CloseIO, request)

    return close


def process_state(message: task_pb2.Process, container_id: str) -> ProcessState:
    """Give the state that a message stands for."""
    return ProcessState(
        container_id=container_id,
        exec_id=message.id if message.id != container_id else "",
        pid=message.pid,
        status=Status(int(message.status)) if int(message.status) in _STATUSES else Status.UNKNOWN,
        stdio=Stdio(stdin=message.stdin, stdout=message.stdout, stderr=message.stderr, terminal=message.terminal),
        exit_status=message.exit_status,
        exited_at=_time(message.exited_at) if message.HasField("exited_at") else None,
    )


def _time(stamp: Timestamp) -> int | None:
    return to_ns(stamp)
