"""A client of containers and their tasks over gRPC, for tests that restart its daemon: calls, and nothing else."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from moored.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.services.tasks.v1 import tasks_pb2_grpc

T = TypeVar("T")
R = TypeVar("R")

RUNNING: Final = 2
STOPPED: Final = 3
UNKNOWN: Final = 0
BUNDLES: Final = "io.containerd.runtime.v2.task"
PROGRAMS: Final = ("sh", "sleep", "true", "false", "cat")
_OCI: Final = "types.containerd.io/opencontainers/runtime-spec/1"
_PROCESS: Final = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
_NAMESPACES: Final = ("pid", "ipc", "uts", "mount", "network")
_SIDE_BY_SIDE: Final = 8


def rootfs(folder: Path) -> Path:
    """Make a root file system with busybox, which containers may share."""
    for name in ("bin", "proc", "dev", "sys", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), folder / "bin/busybox")
    for name in PROGRAMS:
        (folder / "bin" / name).symlink_to("busybox")
    return folder


class TaskClient:
    """Calls in one namespace, with containers that share a root file system. Raises grpc.RpcError.

    state   the daemon's state folder
    """

    def __init__(self, address: Path, state: Path, namespace: str, root: Path) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"unix:{address}", options=options)
        self._containers = containers_pb2_grpc.ContainersStub(self._channel)
        self._tasks = tasks_pb2_grpc.TasksStub(self._channel)
        self._more: dict[str, Any] = {"metadata": (("containerd-namespace", namespace),), "timeout": 60}
        self.state = state
        self.namespace = namespace
        self.root = root

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    # --- containers ---------------------------------------------------------------------------------------------------

    def container(self, id_: str, *args: str, runtime: str = "io.containerd.runc.v2", options: Any = None) -> None:
        """Make a container, without a task."""
        spec = {
            "ociVersion": "1.0.0",
            "process": {**_PROCESS, "args": args},
            "root": {"path": str(self.root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                # each needs one of its own, runtimes make links in it
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": f"/{self.namespace}/{id_}",
                "namespaces": [{"type": kind} for kind in _NAMESPACES],
            },
        }
        new = containers_pb2.Container(
            id=id_,
            runtime=containers_pb2.Container.Runtime(name=runtime, options=options),
            spec=AnyMessage(type_url=f"{_OCI}/Spec", value=json.dumps(spec).encode()),
        )
        self._containers.Create(containers_pb2.CreateContainerRequest(container=new), **self._more)

    def run(self, id_: str, *args: str, **more: Any) -> int:
        """Make a container and its task and start it; its pid."""
        self.container(id_, *args, **more)
        self.create(id_)
        return self.start(id_)

    def remove(self, id_: str) -> int:
        """End the task, delete it and its container; its exit status."""
        if self.get(id_).status != STOPPED:
            self.kill(id_)
            self.wait(id_)
        status = self.delete(id_).exit_status
        self._containers.Delete(containers_pb2.DeleteContainerRequest(id=id_), **self._more)
        return int(status)

    def bundle(self, id_: str) -> Path:
        """A task's bundle."""
        return self.state / BUNDLES / self.namespace / id_

    # --- tasks --------------------------------------------------------------------------------------------------------

    def create(self, id_: str) -> int:
        """Make the task; its pid."""
        return int(self._tasks.Create(pb.CreateTaskRequest(container_id=id_), **self._more).pid)

    def start(self, id_: str, exec_id: str = "") -> int:
        """Run it, or an exec; the pid."""
        return int(self._tasks.Start(pb.StartRequest(container_id=id_, exec_id=exec_id), **self._more).pid)

    def get(self, id_: str) -> Any:
        """The task's process."""
        return self._tasks.Get(pb.GetRequest(container_id=id_), **self._more).process

    def list(self) -> dict[str, Any]:
        """Every task's process by container."""
        return {one.id: one for one in self._tasks.List(pb.ListTasksRequest(), **self._more).tasks}

    def kill(self, id_: str, number: int = 9) -> None:
        """Send a signal to init."""
        self._tasks.Kill(pb.KillRequest(container_id=id_, signal=number), **self._more)

    def wait(self, id_: str, exec_id: str = "") -> Any:
        """How it ended."""
        return self._tasks.Wait(pb.WaitRequest(container_id=id_, exec_id=exec_id), **self._more)

    def waiting(self, id_: str) -> Any:
        """A wait under way."""
        return self._tasks.Wait.future(pb.WaitRequest(container_id=id_), **self._more)

    def delete(self, id_: str) -> Any:
        """Delete the task."""
        return self._tasks.Delete(pb.DeleteTaskRequest(container_id=id_), **self._more)

    def execute(self, id_: str, exec_id: str, *args: str) -> int:
        """Run an exec to its end and forget it; its exit status."""
        process = AnyMessage(type_url=f"{_OCI}/Process", value=json.dumps({**_PROCESS, "args": args}).encode())
        self._tasks.Exec(pb.ExecProcessRequest(container_id=id_, exec_id=exec_id, spec=process), **self._more)
        self.start(id_, exec_id)
        status = int(self.wait(id_, exec_id).exit_status)
        self._tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=id_, exec_id=exec_id), **self._more)
        return status

    def becomes(self, id_: str, status: int, seconds: float = 20.0) -> None:
        """Wait until the task has a status."""
        deadline = time.monotonic() + seconds
        while (found := self.get(id_).status) != status:
            assert time.monotonic() < deadline, f"{id_} is {found}, not {status}"


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do something with every item, some of them at once; the results in the order of the items."""
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        return list(pool.map(work, items))
