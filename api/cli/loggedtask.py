"""Makes tasks whose output goes to a log and whose input is a FIFO that outlives the command, for `attach`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from moored.api.cli.identity import Notes
from moored.api.client.containers import Container
from moored.api.client.tasks import Task
from moored.api.client.wire import mount_messages
from moored.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from moored.kernel.errors import FailedPrecondition


async def create(container: Container, notes: Notes) -> Task:
    """Make the task; only the shim holds the FIFO open, so that the input does not end before `attach` ends it."""
    # The library's streams end with the client that made them.
    calls, mounts = container._calls, await container._mounts()
    folder, stdin = _fifo(calls.connection.fifo_folder, container.id)
    request = tasks_pb2.CreateTaskRequest(
        container_id=container.id,
        rootfs=mount_messages(mounts),
        stdin=stdin,
        stdout=notes.log_uri,
        stderr="" if notes.terminal else notes.log_uri,
        terminal=notes.terminal,
    )
    try:
        await calls.unary(tasks_pb2_grpc.TasksStub(calls.channel).Create, request, slow=True)
        return await container.task()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fifo(parent: Path, name: str) -> tuple[str, str]:
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=parent)
        path = f"{folder}/{name}-stdin"
        os.mkfifo(path, 0o700)
    except OSError as error:
        raise FailedPrecondition(f"no FIFO can be made in '{parent}': {error.strerror}") from error
    return folder, path
