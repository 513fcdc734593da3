"""Carries out `run`, `create` and `start`: containers made, started, joined, and gone again with --rm."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress

from moored.api.cli import identity, lifetime, making, output, terminal
from moored.api.cli.asked import Asked
from moored.api.cli.failing import OWN
from moored.api.cli.home import Home, home
from moored.api.cli.joining import Left, Manner, join
from moored.api.cli.session import run as in_session
from moored.api.cli.settings import Settings
from moored.api.client import Client
from moored.api.client.containers import Container
from moored.kernel.errors import MooredError
from moored.kernel.ports.tasks import Exit

REMOVE_SECONDS = 30.0
MOORED = "moored"
"""In the version of every moored daemon."""


def run(settings: Settings, asked: Asked, keys: str | None, *, pass_signals: bool) -> int:
    """Make a container and run it; gives the exit status for the command."""
    attached = not asked.detach
    if attached and asked.tty and asked.interactive:
        terminal.need_terminal()
    sequence = terminal.parse_keys(terminal.DETACH_KEYS if keys is None else keys)
    place = home(settings.address, settings.namespace)
    manner = Manner(
        terminal=asked.tty,
        stdin=asked.interactive,
        pass_signals=pass_signals and not (asked.tty and asked.interactive),
        keys=sequence if asked.tty else b"",
        ends_with_reader=True,
    )

    async def body(client: Client) -> int:
        image = await making.image_of(client, asked, no_color=settings.no_color)
        container = await making.make(client, place, asked, image)
        if asked.detach:
            await _in_background(place, container, remove=asked.rm)
            if asked.rm and MOORED not in (await client.server.version()).version:
                _watch(settings, container)
            _tell(settings, container)
            return 0
        return await attend(place, container, manner, remove=asked.rm)

    return in_session(settings, body)


def create(settings: Settings, asked: Asked) -> Container:
    """Make a container."""
    place = home(settings.address, settings.namespace)

    async def body(client: Client) -> Container:
        image = await making.image_of(client, asked, no_color=settings.no_color)
        return await making.make(client, place, asked, image)

    return in_session(settings, body)


def _watch(settings: Settings, container: Container) -> None:
    """Leave a process behind that removes the container when it has ended.

    Other daemons' shims do not close the log before the task is deleted, so that its end tells moorctl-log nothing.
    """
    words = ["--address", settings.address, "--namespace", settings.namespace, "rm", "--when-ended", container.id]
    subprocess.Popen(
        [sys.executable, "-m", "moored.api.cli.main", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _tell(settings: Settings, container: Container) -> None:
    if settings.json:
        output.write_json({"id": container.id, "name": identity.name_of(container)})
    else:
        output.write(f"{container.id}\n")


async def _in_background(place: Home, container: Container, *, remove: bool) -> None:
    try:
        task = await lifetime.begin(place, container, attached=False)
        await task.start()
        await lifetime.started(container)
    except BaseException:
        await _given_up(place, container, remove=remove)
        raise


async def start(place: Home, container: Container) -> None:
    """Start a container in the background."""
    await _in_background(place, container, remove=False)


async def attend(place: Home, container: Container, manner: Manner, *, remove: bool) -> int:
    """Start a container, stay with it to its end, and give its exit status."""
    try:
        task = await lifetime.begin(place, container, attached=True)
        await lifetime.started(container)
        ended = await join(task, manner)
    except Left as left:
        return leave(container, left)
    except BaseException:
        await _given_up(place, container, remove=remove)
        raise
    await _over(place, container, ended, remove=remove)
    return status(ended)


async def _over(place: Home, container: Container, ended: Exit, *, remove: bool) -> None:
    if remove:
        await asyncio.wait_for(lifetime.remove(place, container, force=True), REMOVE_SECONDS)
        return
    if identity.notes(container.record.labels).restart:
        return
    # The task goes, and its shim with it; how it ended stays.
    await container.label({identity.EXITED: f"{status(ended)} {ended.exited_at or 0}"})
    if (known := await lifetime.state(container)) is not None:
        await lifetime.forget_task(container, known)
    await lifetime.network_down(place, container)


async def _given_up(place: Home, container: Container, *, remove: bool) -> None:
    """After an error: nothing is left running, and with --rm nothing at all."""
    with suppress(MooredError, OSError, TimeoutError):
        if remove:
            await asyncio.wait_for(lifetime.remove(place, container, force=True), REMOVE_SECONDS)
            return
        if (known := await lifetime.state(container)) is not None:
            await lifetime.forget_task(container, known)
        await lifetime.network_down(place, container)


def leave(container: Container, left: Left) -> int:
    """Say how to come back to a container that goes on, and give the exit status."""
    called = identity.called(container)
    if left.by_keys:
        output.note(f"\nleft {called} running, join it again with moorctl attach {called}")
        return 0
    output.note(f"left {called} running although it was interrupted, end it with moorctl stop {called}")
    return OWN


def status(ended: Exit) -> int:
    """Give the exit status of a process as a shell would."""
    return ended.status & 0xFF
