"""`moorctl stop`, `restart`, `kill`, `pause`, `unpause` and `wait`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from moored.api.client import Client

_JSON = """\b
JSON: {"containers": [{"name", "result", "error"}]}
"""


def _seconds(text: str | None) -> float | None:
    from moored.api.cli.quantities import parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidArgument(f"--time: {error}") from error


@click.command(
    "stop",
    epilog=f"""{_JSON}
\b
Examples:
  moorctl stop web
  moorctl stop -t 2s $(moorctl ps -q)""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@click.option("--time", "-t", "patience", metavar="TIME", help="How long to wait before SIGKILL, 10s if not said else.")
@click.option("--signal", "-s", default="", metavar="SIGNAL", help="In place of the container's own stop signal.")
@global_options
@pass_settings
def stop(settings: Settings, names: tuple[str, ...], patience: str | None, signal: str) -> None:
    """Ask containers to end, by the image's stop signal or SIGTERM, and kill those that do not.

    One that has a restart policy stays stopped.
    """
    seconds = _seconds(patience)
    from moored.api.cli import identity, lifetime
    from moored.api.cli.home import home
    from moored.api.cli.several import each

    async def action(client: Client, name: str) -> None:
        container = await identity.find(client, name)
        await lifetime.end(container, seconds, signal)
        if not identity.notes(container.record.labels).remove:
            await lifetime.network_down(home(settings.address, settings.namespace), container)

    each(settings, names, action)


@click.command(
    "restart",
    epilog=f"""{_JSON}
\b
Examples:
  moorctl restart web""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@click.option("--time", "-t", "patience", metavar="TIME", help="How long to wait before SIGKILL, 10s if not said else.")
@global_options
@pass_settings
def restart(settings: Settings, names: tuple[str, ...], patience: str | None) -> None:
    """Stop containers if they run, and start them in the background."""
    seconds = _seconds(patience)
    from moored.api.cli import identity, lifetime, running
    from moored.api.cli.home import home
    from moored.api.cli.several import each

    async def action(client: Client, name: str) -> None:
        container = await identity.find(client, name)
        await lifetime.end(container, seconds)
        await running.start(home(settings.address, settings.namespace), container)

    each(settings, names, action)


@click.command(
    "kill",
    epilog=f"""{_JSON}
\b
Examples:
  moorctl kill web
  moorctl kill -s HUP web""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@click.option("--signal", "-s", default="KILL", show_default=True, metavar="SIGNAL", help="Name or number.")
@click.option("--all", "everything", is_flag=True, help="To all processes of the container.")
@global_options
@pass_settings
def kill(settings: Settings, names: tuple[str, ...], signal: str, everything: bool) -> None:
    """Send a signal to the first process of containers."""
    from moored.api.cli import identity, lifetime
    from moored.api.cli.several import each
    from moored.api.cli.states import is_up
    from moored.api.client.signalnames import signal_number

    number = signal_number(signal)

    async def action(client: Client, name: str) -> None:
        container = await identity.find(client, name)
        state = await lifetime.state(container)
        if not is_up(state):
            raise FailedPrecondition(f"container {name!r} does not run")
        if number in (9, 15):
            await lifetime.not_to_restart(container)
        await (await container.task()).kill(number, everything=everything)

    each(settings, names, action)


@click.command(
    "pause",
    epilog=f"""{_JSON}
\b
Examples:
  moorctl pause web""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@global_options
@pass_settings
def pause(settings: Settings, names: tuple[str, ...]) -> None:
    """Freeze all processes of containers; they keep their memory and get no time."""
    _each_task(settings, names, "pause")


@click.command(
    "unpause",
    epilog=f"""{_JSON}
\b
Examples:
  moorctl unpause web""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@global_options
@pass_settings
def unpause(settings: Settings, names: tuple[str, ...]) -> None:
    """Let frozen containers go on."""
    _each_task(settings, names, "resume")


def _each_task(settings: Settings, names: tuple[str, ...], what: str) -> None:
    from moored.api.cli import identity, lifetime
    from moored.api.cli.several import each
    from moored.api.cli.states import word

    async def action(client: Client, name: str) -> None:
        container = await identity.find(client, name)
        wanted = "running" if what == "pause" else "paused"
        now = word(await lifetime.state(container))
        if now != wanted:
            raise FailedPrecondition(f"container {name!r} is {now}, only one that is {wanted} can be asked for that")
        task = await container.task()
        await (task.pause() if what == "pause" else task.resume())

    each(settings, names, action)


@click.command(
    "wait",
    epilog="""\b
JSON: {"containers": [{"name", "result", "error"}]}, result: the exit status

\b
Examples:
  moorctl wait job && moorctl logs job""",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=containers)
@global_options
@pass_settings
def wait(settings: Settings, names: tuple[str, ...]) -> None:
    """Wait until containers have ended, and print the exit status of each."""
    from moored.api.cli import identity
    from moored.api.cli.several import each
    from moored.kernel.errors import NotFound

    async def action(client: Client, name: str) -> str:
        container = await identity.find(client, name)
        try:
            task = await container.task()
        except NotFound:
            if (gone := identity.exited(container)) is not None:
                return str(gone.exit_status)
            raise FailedPrecondition(f"container {name!r} was not started") from None
        return str((await task.wait()).status)

    each(settings, names, action)
