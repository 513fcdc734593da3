"""A task behind its shim: the port's calls as messages, and their answers as the port's values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from moored.api.convert import to_ns
from moored.api.runtime.task.v3 import shim_pb2 as api
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.kernel.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MooredError,
    NotFound,
    Unavailable,
)
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.tasks import Exit, NewTask, ProcessInfo, ProcessState, Status, Stdio
from moored.kernel.workers import to_the_end
from moored.plugins.runtime.manager.calls import TaskCalls
from moored.plugins.runtime.manager.shim import Deadlines, ManagedShim

_WITH_SANDBOX_API: Final = 3
"""Shims of this version end with their sandbox, not with a container in it."""

Forget = Callable[["ShimTask"], None]


class ShimTask:
    """A `kernel.ports.tasks.Task`.

    forget  takes the task out of the runtime's list
    joined  whether the shim is a sandbox', which will end it
    """

    def __init__(self, shim: ManagedShim, deadlines: Deadlines, forget: Forget, *, joined: bool = False) -> None:
        self._shim = shim
        self._call = TaskCalls(shim)
        self._deadlines = deadlines
        self._forget = forget
        self._joined = joined
        self._pid = 0

        self.told: Exit | None = None
        """The exit of init that has been published."""

    @property
    def id(self) -> str:
        """See the port."""
        return self._shim.id

    @property
    def namespace(self) -> str:
        """See the port."""
        return self._shim.namespace

    @property
    def pid(self) -> int:
        """See the port."""
        return self._pid

    @property
    def shim(self) -> ManagedShim:
        """Its shim."""
        return self._shim

    # --- beginning ----------------------------------------------------------------------------------------------------

    async def create(self, new: NewTask) -> None:
        """Ask the shim to make the container."""
        options = new.options or new.runtime_options
        request = api.CreateTaskRequest(
            id=self.id,
            bundle=str(self._shim.bundle),
            rootfs=[
                MountMessage(type=one.type, source=one.source, target=one.target, options=one.options)
                for one in new.rootfs
            ],
            terminal=new.stdio.terminal,
            stdin=new.stdio.stdin,
            stdout=new.stdio.stdout,
            stderr=new.stdio.stderr,
            checkpoint=new.checkpoint,
            options=_any(options),
        )
        answer = await self._call("Create", request, api.CreateTaskResponse, seconds=self._deadlines.create)
        self._pid = answer.pid
        if not self._pid:
            await self.connect()

    async def connect(self, seconds: float | None = None) -> None:
        """Learn init's pid; None waits until a silent shim answers."""
        answer = await self._call("Connect", api.ConnectRequest(id=self.id), api.ConnectResponse, seconds=seconds)
        self._pid = answer.task_pid or self._pid

    def assume_pid(self, pid: int) -> None:
        """Note init's pid as its bundle has it, until the shim has been asked."""
        self._pid = self._pid or pid

    # --- the port -----------------------------------------------------------------------------------------------------

    async def state(self, exec_id: str = "") -> ProcessState:
        """See the port."""
        try:
            return await self.ask_state(exec_id, seconds=self._deadlines.state)
        except (DeadlineExceeded, Unavailable):
            if exec_id:
                raise
            return ProcessState(container_id=self.id, pid=self._pid)

    async def ask_state(self, exec_id: str = "", *, seconds: float | None) -> ProcessState:
        """Ask the shim. Raises whatever comes."""
        found = await self._call(
            "State", api.StateRequest(id=self.id, exec_id=exec_id), api.StateResponse, seconds=seconds
        )
        return ProcessState(
            container_id=self.id,
            # runc's shim tells it as the id
            exec_id=exec_id,
            pid=found.pid,
            status=_status(found.status),
            stdio=Stdio(stdin=found.stdin, stdout=found.stdout, stderr=found.stderr, terminal=found.terminal),
            exit_status=found.exit_status,
            exited_at=_moment(found.exited_at),
        )

    async def start(self, exec_id: str = "") -> int:
        """See the port."""
        request = api.StartRequest(id=self.id, exec_id=exec_id)
        pid = (await self._call("Start", request, api.StartResponse, seconds=self._deadlines.run)).pid
        if not exec_id:
            # a restored task has no process before
            self._pid = pid
        return pid

    async def exec(self, exec_id: str, spec: TypedBytes, stdio: Stdio) -> None:
        """See the port."""
        request = api.ExecProcessRequest(
            id=self.id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=_any(spec),
        )
        await self._call("Exec", request, Empty, seconds=self._deadlines.other)

    async def kill(self, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        """See the port."""
        request = api.KillRequest(id=self.id, exec_id=exec_id, signal=signal, all=everything and not exec_id)
        await self._call("Kill", request, Empty, seconds=self._deadlines.other)

    async def pause(self) -> None:
        """See the port."""
        await self._call("Pause", api.PauseRequest(id=self.id), Empty, seconds=self._deadlines.other)

    async def resume(self) -> None:
        """See the port."""
        await self._call("Resume", api.ResumeRequest(id=self.id), Empty, seconds=self._deadlines.other)

    async def resize(self, width: int, height: int, exec_id: str = "") -> None:
        """See the port."""
        request = api.ResizePtyRequest(id=self.id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, Empty, seconds=self._deadlines.other)

    async def close_stdin(self, exec_id: str = "") -> None:
        """See the port."""
        await self._call(
            "CloseIO", api.CloseIORequest(id=self.id, exec_id=exec_id, stdin=True), Empty, seconds=self._deadlines.other
        )

    async def pids(self) -> list[ProcessInfo]:
        """See the port."""
        found = await self._call("Pids", api.PidsRequest(id=self.id), api.PidsResponse, seconds=self._deadlines.other)
        return [ProcessInfo(one.pid, _typed(one.info) if one.HasField("info") else None) for one in found.processes]

    async def checkpoint(self, path: str, options: TypedBytes | None) -> None:
        """See the port."""
        request = api.CheckpointTaskRequest(id=self.id, path=path, options=_any(options))
        await self._call("Checkpoint", request, Empty, seconds=self._deadlines.checkpoint)

    async def update(self, resources: TypedBytes | None, annotations: Mapping[str, str]) -> None:
        """See the port."""
        if resources is None:
            # a shim of containerd 2.3 crashes on that
            raise InvalidArgument("resources are missing")
        request = api.UpdateTaskRequest(id=self.id, resources=_any(resources), annotations=annotations)
        await self._call("Update", request, Empty, seconds=self._deadlines.other)

    async def stats(self) -> TypedBytes:
        """See the port."""
        found = await self._call(
            "Stats", api.StatsRequest(id=self.id), api.StatsResponse, seconds=self._deadlines.other
        )
        if not found.HasField("stats"):
            raise NotFound(f"task {self.id!r} has no counters")
        return _typed(found.stats)

    async def wait(self, exec_id: str = "") -> Exit:
        """See the port."""
        request = api.WaitRequest(id=self.id, exec_id=exec_id)
        while True:
            try:
                found = await self._call("Wait", request, api.WaitResponse, seconds=None)
            except Unavailable:
                if not await self._shim.settled():
                    raise
            else:
                pid = 0 if exec_id else self._pid
                return Exit(pid=pid, status=found.exit_status, exited_at=_moment(found.exited_at))

    async def delete(self, exec_id: str = "") -> Exit:
        """See the port."""
        if exec_id:
            return await self._ask_delete(exec_id, self._deadlines.delete)
        return await to_the_end(self._delete())

    async def _ask_delete(self, exec_id: str, seconds: float) -> Exit:
        request = api.DeleteRequest(id=self.id, exec_id=exec_id)
        found = await self._call("Delete", request, api.DeleteResponse, seconds=seconds)
        return Exit(pid=found.pid, status=found.exit_status, exited_at=_moment(found.exited_at))

    async def _delete(self) -> Exit:
        try:
            ended = await self._ask_delete("", self._deadlines.delete)
        except Unavailable:
            if await self._shim.settled():
                raise
            await self._shim.retire()
            raise NotFound(f"task {self.id} not found", bare=True) from None
        except NotFound:
            # the shim has lost it, or somebody else deletes it: what is left goes too
            await self._put_away()
            raise NotFound(f"task {self.id} not found", bare=True) from None
        await self._put_away()
        return ended

    async def _put_away(self) -> None:
        self._forget(self)
        clean = await self._shut_down()
        self._call.task_is_gone()
        await self._shim.retire(clean=clean)

    async def _shut_down(self) -> bool:
        """Let the shim end; whether it said that it would. One in a sandbox goes on."""
        if self._joined and self._call.version >= _WITH_SANDBOX_API:
            return True
        try:
            request = api.ShutdownRequest(id=self.id)
            await self._call("Shutdown", request, Empty, seconds=self._deadlines.shutdown)
        except Unavailable:
            return True  # it may be gone before it has answered
        except MooredError:
            return False
        return True

    async def undo(self, *, shared: bool) -> None:
        """Have the shim delete whatever it has of the container, in any state, and end. Raises nothing.

        A shared shim does not end.
        """
        with suppress(MooredError):
            await self._ask_delete("", self._deadlines.cleanup)
        if not shared and await self._shut_down():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._deadlines.shutdown):
                    await self._shim.wait_closed()

    async def discard(self) -> None:
        """End a shim that has lost its container. Raises nothing but for cancellation."""
        await self._put_away()


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        return Status.UNKNOWN


def _moment(stamp: Timestamp) -> int | None:
    """Give a time in ns; both of the ways to write none are None."""
    return None if not stamp.seconds and not stamp.nanos else to_ns(stamp)


def _any(message: TypedBytes | None) -> Any | None:
    return None if message is None else Any(type_url=message.type_url, value=message.value)


def _typed(message: Any) -> TypedBytes:
    return TypedBytes(message.type_url, message.value)
