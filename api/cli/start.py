"""`moorctl start`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings
from moored.kernel.errors import InvalidArgument

if TYPE_CHECKING:
    from moored.api.client import Client


@click.command(
    "start",
    epilog="""\b
JSON: {"containers": [{"name", "result", "error"}]}

\b
Examples:
  moorctl start web db
  moorctl start -ai job""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@click.option("--attach", "-a", is_flag=True, help="Stay with it, and exit as it does.")
@click.option("--interactive", "-i", is_flag=True, help="Pass standard input on, if the container was made with -i.")
@click.option("--detach-keys", metavar="KEYS", help="Keys that leave the container running, ctrl-p,ctrl-q.")
@global_options_without_a
@pass_settings
@click.pass_context
def start(
    ctx: click.Context,
    settings: Settings,
    *,
    names: tuple[str, ...],
    attach: bool,
    interactive: bool,
    detach_keys: str | None,
) -> None:
    """Start containers that were made or have ended, in the background unless asked otherwise."""
    from moored.api.cli import identity, running
    from moored.api.cli.home import home

    place = home(settings.address, settings.namespace)
    if not (attach or interactive):
        from moored.api.cli.several import each

        async def action(client: Client, name: str) -> None:
            await running.start(place, await identity.find(client, name))

        each(settings, names, action)
        return
    if len(names) > 1:
        raise InvalidArgument("only one container can be attached to at a time")
    from moored.api.cli import terminal
    from moored.api.cli.failing import start_failures
    from moored.api.cli.joining import Manner
    from moored.api.cli.session import run

    async def body(client: Client) -> int:
        container = await identity.find(client, names[0])
        notes = identity.notes(container.record.labels)
        typed = interactive and notes.stdin
        if notes.terminal and typed:
            terminal.need_terminal()
        keys = terminal.parse_keys(terminal.DETACH_KEYS if detach_keys is None else detach_keys)
        manner = Manner(
            terminal=notes.terminal,
            stdin=typed,
            keys=keys if notes.terminal else b"",
            pass_signals=not (notes.terminal and typed),
            ends_with_reader=True,
        )
        return await running.attend(place, container, manner, remove=notes.remove)

    with start_failures():
        status = run(settings, body)
    ctx.exit(status)
