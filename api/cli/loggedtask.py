"""Makes tasks whose output goes to a log and whose input is a FIFO that outlives the command, for `attach`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from moored.api.cli.identity import Notes
from moored.api.client.containers import Container
from moored.api.client.stdio import log_to
from moored.api.client.tasks import Task
from moored.kernel.errors import FailedPrecondition


async def create(container: Container, notes: Notes, fifos: Path) -> Task:
    """Make the task; only the shim holds the FIFO open, so that the input does not end before `attach` ends it."""
    folder, stdin = _fifo(fifos, container.id)
    try:
        return await container.create_task(log_to(notes.log_uri, stdin=stdin))
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
