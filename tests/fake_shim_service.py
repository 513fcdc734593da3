"""The process of the fake shim that stays: the task API over nothing at all."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.runtime.task.v3 import shim_pb2 as api
from moored.api.ttrpc.server import Kind, Method, Server, Services
from moored.kernel.errors import FailedPrecondition, NotFound


class Task:
    """The task service for one container."""

    def __init__(self, id_: str, hangs: list[str], record: Path) -> None:
        self.id = id_
        self.hangs = hangs
        self.record = record
        self.created = False
        self.running = False
        self.status = 0
        self.exited_at: int | None = None
        self.over = asyncio.Event()
        self.ended = asyncio.Event()

    async def handle(self, name: str, request: Any) -> Any:
        with self.record.open("a") as record:
            record.write(f"{name}\n")
        if name in self.hangs:
            await asyncio.Event().wait()
        if name not in {"Create", "Connect", "Shutdown"} and not self.created and request.id == self.id:
            raise NotFound("container not created")
        return await getattr(self, name.lower())(request)

    async def create(self, request: Any) -> Any:
        self.created = self.created or request.id == self.id
        Path(request.bundle, "init.pid").write_text(str(os.getpid()))  # noqa: ASYNC240 - a shim of one task
        return api.CreateTaskResponse(pid=os.getpid())

    async def connect(self, request: Any) -> Any:
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=os.getpid() if self.created else 0)

    async def start(self, request: Any) -> Any:
        self.running = True
        return api.StartResponse(pid=os.getpid())

    async def state(self, request: Any) -> Any:
        number = 3 if self.over.is_set() else 2 if self.running else 1
        return api.StateResponse(
            id=self.id, pid=os.getpid(), status=number, exit_status=self.status, exited_at=timestamp(self.exited_at)
        )

    async def kill(self, request: Any) -> Any:
        self.status, self.exited_at = 128 + request.signal, time.time_ns()
        self.over.set()
        return Empty()

    async def wait(self, request: Any) -> Any:
        await self.over.wait()
        return api.WaitResponse(exit_status=self.status, exited_at=timestamp(self.exited_at))

    async def pids(self, request: Any) -> Any:
        return api.PidsResponse(processes=[])

    async def delete(self, request: Any) -> Any:
        if self.running and not self.over.is_set():
            raise FailedPrecondition("cannot delete a running process")
        if request.id == self.id:
            self.created = False
        return api.DeleteResponse(pid=os.getpid(), exit_status=self.status, exited_at=timestamp(self.exited_at))

    async def shutdown(self, request: Any) -> Any:
        asyncio.get_running_loop().call_later(0.01, self.ended.set)
        return Empty()


MESSAGES = {
    "Create": (api.CreateTaskRequest, api.CreateTaskResponse),
    "Connect": (api.ConnectRequest, api.ConnectResponse),
    "Start": (api.StartRequest, api.StartResponse),
    "State": (api.StateRequest, api.StateResponse),
    "Kill": (api.KillRequest, Empty),
    "Wait": (api.WaitRequest, api.WaitResponse),
    "Pids": (api.PidsRequest, api.PidsResponse),
    "Delete": (api.DeleteRequest, api.DeleteResponse),
    "Shutdown": (api.ShutdownRequest, Empty),
}


async def serve(sock: socket.socket, id_: str, behaviour: dict[str, Any]) -> None:
    """Serve until Shutdown."""
    task = Task(id_, behaviour.get("hangs", []), Path(behaviour["record"]))

    def handler(name: str) -> Callable[..., Any]:
        return lambda request, _context: task.handle(name, request)

    methods = {name: Method(Kind.UNARY, asked, told, handler(name)) for name, (asked, told) in MESSAGES.items()}
    services = Services()
    for version in behaviour.get("speaks", [3]):
        services.register(f"containerd.task.v{version}.Task", methods)
    server = Server(services)
    await server.serve(sock)
    await task.ended.wait()
    await server.stop(0.1)
