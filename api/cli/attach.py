"""`moorctl attach`: the terminal or output of a container that runs already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import FailedPrecondition

if TYPE_CHECKING:
    from moored.api.cli.identity import Notes
    from moored.api.client import Client
    from moored.api.client.tasks import Process


@click.command(
    "attach",
    epilog="""\b
Examples:
  moorctl attach shell
  moorctl attach --no-stdin web""",
)
@click.argument("name", metavar="CONTAINER", shell_complete=containers)
@click.option("--no-stdin", is_flag=True, help="Pass no input on.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, show_default=True, help="Pass signals on to the process.")
@click.option("--detach-keys", metavar="KEYS", help="Keys that leave the container running, ctrl-p,ctrl-q.")
@global_options
@pass_settings
@click.pass_context
def attach(
    ctx: click.Context, settings: Settings, *, name: str, no_stdin: bool, sig_proxy: bool, detach_keys: str | None
) -> None:
    """Join a container's input and output, until it ends, whose exit status is passed on, or the detach keys.

    What a detached container writes is taken from its log, from now on.
    """
    from moored.api.cli import identity, terminal
    from moored.api.cli.exec import running_task
    from moored.api.cli.failing import start_failures
    from moored.api.cli.joining import NOBODY_READS, Left, Manner, join
    from moored.api.cli.running import leave
    from moored.api.cli.session import run

    keys = terminal.parse_keys(terminal.DETACH_KEYS if detach_keys is None else detach_keys)

    async def body(client: Client) -> int:
        container = await identity.find(client, name)
        await running_task(container, name)
        notes = identity.notes(container.record.labels)
        process = await container.task(attach=True)
        state = await process.state()
        typed = not no_stdin and process.stdin is not None
        if state.stdio.terminal and typed:
            terminal.need_terminal()
        manner = Manner(
            terminal=state.stdio.terminal,
            stdin=typed,
            pass_signals=sig_proxy and not (state.stdio.terminal and typed),
            keys=keys if state.stdio.terminal else b"",
        )
        try:
            if process.stdout is None:
                ended = await join(process, manner, started=True, output=_log(process, notes, name))
            else:
                ended = await join(process, manner, started=True)
        except Left as left:
            return leave(container, left)
        except BrokenPipeError:
            return NOBODY_READS
        return ended.status & 0xFF

    with start_failures(own=1):
        status = run(settings, body)
    ctx.exit(status)


def _log(process: Process, notes: Notes, name: str) -> AsyncGenerator[bytes]:
    if not notes.log:
        raise FailedPrecondition(f"the output of container {name!r} goes nowhere that moorctl can read")
    return _followed(process, Path(notes.log), notes.log_format)


async def _followed(process: Process, path: Path, form: str) -> AsyncGenerator[bytes]:
    """What is added to the log from now on, to the end of the container."""
    from moored.api.cli.logfiles import Reader, followed

    ended = asyncio.Event()

    async def watch() -> None:
        await process.wait()
        ended.set()

    reader = Reader(path, form, 0)
    list(reader.entries())
    watching = asyncio.create_task(watch())
    try:
        async for entry in followed(reader, ended):
            yield entry.data
    finally:
        watching.cancel()
        reader.close()
