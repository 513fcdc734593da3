"""What happens to containers that there are: their tasks begin and end, and all that belongs to them goes with them.

begin: old task deleted -> network up -> task made          end: signal -> wait -> SIGKILL -> wait
remove: task ended -> record and snapshot -> network down -> volumes, FIFOs, folder
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from moored.api.cli import identity, volumes
from moored.api.cli.home import Home, fifo_folder
from moored.api.cli.identity import Notes
from moored.api.cli.making import OWN_NETWORK
from moored.api.cli.network import membership, ports
from moored.api.client.containers import Container
from moored.api.client.signalnames import signal_number
from moored.api.client.stdio import NULL, PIPES, PIPES_AND_STDIN, TERMINAL, Io, log_to
from moored.api.client.tasks import Task
from moored.kernel.errors import FailedPrecondition, NotFound
from moored.kernel.ports.tasks import ProcessState, Status

STOP_SECONDS: Final = 10.0
SIGKILL: Final = 9
RESTART_STATUS: Final = "containerd.io/restart.status"
RESTART_POLICY: Final = "containerd.io/restart.policy"
RESTART_LOG: Final = "containerd.io/restart.loguri"
STOPPED_ON_PURPOSE: Final = "containerd.io/restart.explicitly-stopped"


def streams(notes: Notes, *, attached: bool) -> Io:
    """Give the streams that a container's task gets: the command's own, or its log's."""
    if not attached:
        return log_to(notes.log_uri) if notes.log_uri else NULL
    if notes.terminal:
        return TERMINAL
    return PIPES_AND_STDIN if notes.stdin else PIPES


async def state(container: Container) -> ProcessState | None:
    """Ask how a container's task is, or was; None for none."""
    try:
        return await (await container.task()).state()
    except NotFound:
        return identity.exited(container)


async def begin(home: Home, container: Container, *, attached: bool) -> Task:
    """Make a container's task, with its network, ready to be started.

    Raises FailedPrecondition for one that runs; the errors of its network and its runtime.
    """
    known = await state(container)
    if known is not None:
        if known.status not in (Status.STOPPED, Status.CREATED):
            raise FailedPrecondition(f"container {identity.called(container)!r} runs already")
        await forget_task(container, known)
    if identity.EXITED in container.record.labels:
        await container.label({identity.EXITED: ""})
    notes = identity.notes(container.record.labels)
    if needs_network(notes, container):
        await _network_up(home, container, notes)
    if not attached and notes.stdin and notes.log_uri:
        from moored.api.cli import loggedtask

        return await loggedtask.create(container, notes, fifo_folder())
    return await container.create_task(streams(notes, attached=attached))


def needs_network(notes: Notes, container: Container) -> bool:
    """Whether a container has a CNI network that moorctl sees to."""
    own = notes.network in OWN_NETWORK or notes.network.startswith("container:")
    return identity.is_ours(container.record.labels) and not own


async def _network_up(home: Home, container: Container, notes: Notes) -> None:
    wanted = ports.read(container.record.labels)
    names = membership.Names(**notes.names)
    chosen = await asyncio.to_thread(membership.up, home, container.id, notes.network, wanted, names)
    if chosen != wanted:
        await container.label({ports.LABEL: ports.written(chosen)})


async def started(container: Container) -> None:
    """Note that a container runs and is to be kept running, if it is."""
    notes = identity.notes(container.record.labels)
    if not notes.restart:
        return
    labels = {RESTART_STATUS: "running", RESTART_POLICY: notes.restart, STOPPED_ON_PURPOSE: ""}
    if notes.log_uri:
        labels[RESTART_LOG] = notes.log_uri
    await container.label(labels)


async def not_to_restart(container: Container) -> None:
    """Note that a container is to stay as it is once it has ended."""
    if container.record.labels.get(RESTART_STATUS) == "running":
        await container.label({RESTART_STATUS: "stopped", STOPPED_ON_PURPOSE: "true"})


async def end(container: Container, seconds: float | None = None, signal: str = "") -> bool:
    """End a container's task: its stop signal, after the seconds SIGKILL. False if there was nothing to end."""
    labels = container.record.labels
    await not_to_restart(container)
    known = await state(container)
    if known is None or known.status in (Status.STOPPED, Status.CREATED):
        return False
    task = await container.task()
    if known.status in (Status.PAUSED, Status.PAUSING):
        await task.resume()
    patience = seconds if seconds is not None else identity.notes(labels).stop_seconds
    patience = STOP_SECONDS if patience is None else patience
    number = signal_number(signal or labels.get(identity.STOP_SIGNAL) or "SIGTERM")
    # Asked for first: an end in between would be missed otherwise.
    ended = asyncio.ensure_future(task.wait())
    try:
        if patience > 0:
            with suppress(NotFound):
                await task.kill(number)
            await asyncio.wait([ended], timeout=patience)
        if not ended.done():
            with suppress(NotFound):
                await task.kill(SIGKILL, everything=True)
        await ended
    finally:
        ended.cancel()
    return True


async def forget_task(container: Container, known: ProcessState) -> None:
    """Delete a task that has ended, or never ran, and the FIFOs that were made for it."""
    try:
        with suppress(NotFound):
            await (await container.task()).delete(force=True)
    finally:
        remove_fifos(known)


def remove_fifos(known: ProcessState) -> None:
    """Remove the folder of a process's FIFOs, where they are in one that the client library made for them."""
    for path in (known.stdio.stdin, known.stdio.stdout, known.stdio.stderr):
        if path.startswith("/") and Path(path).is_fifo():
            folder = Path(path).parent
            if all(entry.is_fifo() for entry in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
            return


async def network_down(home: Home, container: Container) -> None:
    """Take a container from its network, if it has one of its own."""
    if identity.is_ours(container.record.labels):
        await asyncio.to_thread(membership.down, home, container.id)


async def remove(home: Home, container: Container, *, force: bool = False, keep_volumes: bool = False) -> None:
    """Remove a container with all that belongs to it. Raises FailedPrecondition for one that runs unless forced."""
    known = await state(container)
    if known is not None and known.status not in (Status.STOPPED, Status.CREATED):
        if not force:
            called = identity.called(container)
            raise FailedPrecondition(f"container {called!r} runs, stop it with moorctl stop {called} or use rm -f")
        await end(container, 0)
    if known is not None:
        await forget_task(container, known)
    await container.delete(force=force)
    await clean(home, container, keep_volumes=keep_volumes)


async def clean(home: Home, container: Container, *, keep_volumes: bool = False) -> None:
    """Remove what moorctl kept for a container that is gone."""
    labels = container.record.labels
    if not identity.is_ours(labels):
        return
    await network_down(home, container)
    if not keep_volumes:
        for volume in identity.notes(labels).volumes:
            volumes.remove(home, volume)
    home.remove_container(container.id)
