"""`moorctl rm`: containers removed, with all that moorctl made for them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client


@click.command(
    "rm",
    epilog="""\b
JSON: {"containers": [{"name", "result", "error"}]}

\b
Examples:
  moorctl rm web
  moorctl rm -f $(moorctl ps -aq)""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@click.option("--force", "-f", is_flag=True, help="Kill those that run.")
@click.option("--volumes", "-v", is_flag=True, expose_value=False, help="As without: nameless volumes go along.")
@click.option("--keep-volumes", is_flag=True, help="Keep the volumes that have no name.")
@click.option("--when-ended", is_flag=True, hidden=True, help="Wait for their end first; one that is gone is fine.")
@global_options
@pass_settings
def rm(settings: Settings, *, names: tuple[str, ...], force: bool, keep_volumes: bool, when_ended: bool) -> None:
    """Remove containers that do not run, their changes, logs, network and volumes without a name."""
    from moored.api.cli import identity, lifetime
    from moored.api.cli.home import home
    from moored.api.cli.several import each
    from moored.kernel.errors import NotFound

    place = home(settings.address, settings.namespace)

    async def action(client: Client, name: str) -> str | None:
        if when_ended:
            with suppress(NotFound):
                container = await identity.find(client, name)
                with suppress(NotFound):
                    await (await container.task()).wait()
                await lifetime.remove(place, container, force=True)
            return ""
        await lifetime.remove(place, await identity.find(client, name), force=force, keep_volumes=keep_volumes)
        return None

    each(settings, names, action)
