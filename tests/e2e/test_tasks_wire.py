"""Every call of the tasks service with good and bad requests: the same codes and words as containerd's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from e2e.busybox import NAME
from e2e.clients import Client, containerd_of, every_ctr, moored, needs_ctr_and_runc, peer_of, short_folder
from moored.api.convert import GO_ZERO_SECONDS
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.services.tasks.v1 import tasks_pb2_grpc as rpc
from moored.api.types.descriptor_pb2 import Descriptor

pytestmark = needs_ctr_and_runc
OCI = "types.containerd.io/opencontainers/runtime-spec/1"
CRIU_TAR = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
PROCESS = b'{"args":["/bin/sleep","1000"],"cwd":"/","user":{"uid":0,"gid":0}}'
LIMITS = b'{"pids":{"limit":100}}'


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def typed(url: str, value: bytes = b"") -> AnyMessage:
    return AnyMessage(type_url=url, value=value)


def requests() -> Iterator[tuple[str, Message]]:
    """What is asked of the running task `c1`, of the container `c2` without one, and of `none`."""
    exec_ = {"container_id": "c1", "spec": typed(f"{OCI}/Process", PROCESS)}
    yield "Get", pb.GetRequest(container_id="c1")
    yield "Get", pb.GetRequest(container_id="none")
    yield "Get", pb.GetRequest(container_id="c2")
    yield "Get", pb.GetRequest()
    for exec_id in ("e9", "e 9"):
        yield "Get", pb.GetRequest(container_id="c1", exec_id=exec_id)
        yield "Start", pb.StartRequest(container_id="c1", exec_id=exec_id)
        yield "Wait", pb.WaitRequest(container_id="c1", exec_id=exec_id)
        yield "Kill", pb.KillRequest(container_id="c1", exec_id=exec_id, signal=9)
        yield "DeleteProcess", pb.DeleteProcessRequest(container_id="c1", exec_id=exec_id)
        yield "CloseIO", pb.CloseIORequest(container_id="c1", exec_id=exec_id, stdin=True)
        yield "CloseIO", pb.CloseIORequest(container_id="c1", exec_id=exec_id)
        yield "ResizePty", pb.ResizePtyRequest(container_id="c1", exec_id=exec_id)
    yield "List", pb.ListTasksRequest(filter="id==none")
    yield "Metrics", pb.MetricsRequest(filters=["id==none"])
    yield "Metrics", pb.MetricsRequest(filters=["id=c1"])
    yield "Start", pb.StartRequest(container_id="c1")
    yield "Delete", pb.DeleteTaskRequest(container_id="c1")
    yield "DeleteProcess", pb.DeleteProcessRequest(container_id="c1")
    # execs
    yield "Exec", pb.ExecProcessRequest(container_id="none")
    yield "Exec", pb.ExecProcessRequest(exec_id="e 1", **exec_)
    yield "Exec", pb.ExecProcessRequest(exec_id="e1", **exec_)
    yield "Exec", pb.ExecProcessRequest(exec_id="e1", **exec_)
    yield "Get", pb.GetRequest(container_id="c1", exec_id="e1")
    yield "Kill", pb.KillRequest(container_id="c1", exec_id="e1", signal=9)
    yield "Start", pb.StartRequest(container_id="c1", exec_id="e1")
    # Starting it again makes shims of containerd 2.4 panic when init ends.
    yield "Get", pb.GetRequest(container_id="c1", exec_id="e1")
    yield "ListPids", pb.ListPidsRequest(container_id="c1")
    yield "DeleteProcess", pb.DeleteProcessRequest(container_id="c1", exec_id="e1")
    yield "Kill", pb.KillRequest(container_id="c1", exec_id="e1", signal=9, all=True)
    yield "Wait", pb.WaitRequest(container_id="c1", exec_id="e1")
    yield "Wait", pb.WaitRequest(container_id="c1", exec_id="e1")
    yield "Kill", pb.KillRequest(container_id="c1", exec_id="e1", signal=9)
    yield "Get", pb.GetRequest(container_id="c1", exec_id="e1")
    yield "DeleteProcess", pb.DeleteProcessRequest(container_id="c1", exec_id="e1")
    # states
    yield "Kill", pb.KillRequest(container_id="c1", signal=0)
    yield "Pause", pb.PauseTaskRequest(container_id="c1")
    yield "Get", pb.GetRequest(container_id="c1")
    yield "Pause", pb.PauseTaskRequest(container_id="c1")
    yield "Exec", pb.ExecProcessRequest(exec_id="e2", **exec_)
    yield "Delete", pb.DeleteTaskRequest(container_id="c1")
    yield "Resume", pb.ResumeTaskRequest(container_id="c1")
    yield "Resume", pb.ResumeTaskRequest(container_id="c1")
    yield "ResizePty", pb.ResizePtyRequest(container_id="c1", width=80, height=25)
    yield "CloseIO", pb.CloseIORequest(container_id="c1", stdin=True)
    yield "Update", pb.UpdateTaskRequest(container_id="c1", resources=typed(f"{OCI}/LinuxResources", LIMITS))
    # create
    yield "Create", pb.CreateTaskRequest(container_id="c1")
    yield "Create", pb.CreateTaskRequest(container_id="none")
    yield "Create", pb.CreateTaskRequest(container_id="c1", options=typed("no.such"))
    yield "Create", pb.CreateTaskRequest(container_id="c1", options=typed(""))
    yield "Create", pb.CreateTaskRequest(container_id="c1", options=typed("containerd.runc.v1.ProcessDetails"))
    yield "Create", pb.CreateTaskRequest(container_id="c1", options=typed("containerd.runc.v1.Options"))
    yield "Create", pb.CreateTaskRequest(container_id="c1", checkpoint=Descriptor(media_type="x", digest="sha256:x"))
    missing = Descriptor(media_type=CRIU_TAR, digest=f"sha256:{'0' * 64}", size=1)
    yield "Create", pb.CreateTaskRequest(container_id="c2", checkpoint=missing)
    yield "Checkpoint", pb.CheckpointTaskRequest(container_id="c1", options=typed("no.such"))
    yield "Checkpoint", pb.CheckpointTaskRequest(container_id="c1", options=typed("containerd.runc.v1.Options"))
    yield "Checkpoint", pb.CheckpointTaskRequest(container_id="c2")
    # the end
    yield "Kill", pb.KillRequest(container_id="c1", signal=9)
    yield "Wait", pb.WaitRequest(container_id="c1")
    yield "Wait", pb.WaitRequest(container_id="c1")
    yield "Get", pb.GetRequest(container_id="c1")
    yield "List", pb.ListTasksRequest()
    yield "ListPids", pb.ListPidsRequest(container_id="c1")
    yield "Metrics", pb.MetricsRequest()
    yield "Kill", pb.KillRequest(container_id="c1", signal=9)
    yield "Kill", pb.KillRequest(container_id="c1", signal=9, all=True)
    yield "Start", pb.StartRequest(container_id="c1")
    yield "Pause", pb.PauseTaskRequest(container_id="c1")
    yield "Resume", pb.ResumeTaskRequest(container_id="c1")
    yield "Exec", pb.ExecProcessRequest(exec_id="e3", **exec_)
    yield "Delete", pb.DeleteTaskRequest(container_id="c1")
    yield "Wait", pb.WaitRequest(container_id="c1")
    yield "Delete", pb.DeleteTaskRequest(container_id="c1")


def answers(client: Client) -> list[str]:
    """Ask all of it; pids, times and paths are left out."""
    client.run("run", "-d", "--null-io", NAME, "c1", "sleep", "1000")
    client.run("containers", "create", NAME, "c2")
    found = []
    with grpc.insecure_channel(f"unix:{client.address}") as channel:
        stub = rpc.TasksStub(channel)
        for number, (method, request) in enumerate(requests()):
            asked = f"{number} {method} {request!r}".replace("\n", " ")
            try:
                metadata = (("containerd-namespace", client.namespace),)
                answer = getattr(stub, method)(request, metadata=metadata, timeout=20)
            except grpc.RpcError as error:
                text = str(client.normal(error.details() or ""))
                # Daemons of the 1.6 line say the class that is none, too.
                found.append(f"{asked}: {error.code().name} {text.removesuffix(': unknown')}")
            else:
                found.append(f"{asked}: {shown(answer)}")
    for name in ("c1", "c2"):
        client.run("containers", "rm", name)
    return found


def shown(message: Any) -> str:
    """A message with its numbers cut to 0 or not, and its times to none or some."""
    parts = []
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        parts += [f"{field.name}={_shown(field.name, one)}" for one in values]
    return " ".join(parts)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Timestamp):
        return "no time" if value.seconds == GO_ZERO_SECONDS else "a time"
    if isinstance(value, Message):
        return f"({shown(value)})"
    return f"a {name}" if name in {"pid", "value"} else str(value)


@every_ctr
def test_answers_are_those_of_containerd(folder: Path, ctr: str) -> None:
    peer_of(ctr)
    with moored(folder / "m", ctr) as client:
        ours = answers(client)
    with containerd_of(folder / "c", ctr) as client:
        theirs = answers(client)

    different = [f"ours   {our}\ntheirs {their}" for our, their in zip(ours, theirs, strict=True) if our != their]
    assert not different, "\n".join(different)
