"""`moorctl exec`: one more process in a container."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from moored.api.cli import output
from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, long_global_options, pass_settings
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.containers import Container
    from moored.api.client.tasks import Task


@click.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
JSON, with -d: {"id", "exec_id", "pid"}

\b
Examples:
  moorctl exec -it web sh
  moorctl exec -u root -w / web id
  moorctl exec -d web touch /tmp/here""",
)
@click.argument("name", metavar="CONTAINER", shell_complete=containers)
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
@click.option("--interactive", "-i", is_flag=True, help="Pass standard input on.")
@click.option("--tty", "-t", is_flag=True, help="Give the process a terminal.")
@click.option("--detach", "-d", is_flag=True, help="Run in the background; what it writes is lost.")
@click.option("--env", "-e", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("--env-file", multiple=True, metavar="FILE", help="Set the variables of a file.")
@click.option("--workdir", "-w", default="", metavar="PATH", help="Folder that the process starts in.")
@click.option("--user", "-u", default="", metavar="USER[:GROUP]", help="Who the process is.")
@click.option("--privileged", is_flag=True, help="Give all capabilities.")
@click.option("--detach-keys", metavar="KEYS", help="Keys that leave the process running, ctrl-p,ctrl-q.")
@long_global_options
@pass_settings
@click.pass_context
def exec_(
    ctx: click.Context,
    settings: Settings,
    *,
    name: str,
    args: tuple[str, ...],
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str,
    user: str,
    privileged: bool,
    detach_keys: str | None,
) -> None:
    """Run one more process in a container that runs, and exit as it does.

    With 126 for a program that cannot be run and 127 for one that is not there.
    """
    from moored.api.cli import identity, terminal
    from moored.api.cli.asked import Asked, environment
    from moored.api.cli.failing import OWN, start_failures
    from moored.api.cli.joining import Left, Manner, join
    from moored.api.cli.session import run
    from moored.api.client.stdio import NULL, PIPES, PIPES_AND_STDIN, TERMINAL

    if detach and (interactive or tty):
        raise InvalidArgument("--detach excludes --interactive and --tty")
    if tty and interactive:
        terminal.need_terminal()
    variables = environment(Asked(image="", args=(), env=env, env_file=env_file))
    keys = terminal.parse_keys(terminal.DETACH_KEYS if detach_keys is None else detach_keys)
    streams = NULL if detach else TERMINAL if tty else PIPES_AND_STDIN if interactive else PIPES

    async def body(client: Client) -> int:
        container = await identity.find(client, name)
        task = await running_task(container, name)
        process = await task.exec(args, streams, env=variables, cwd=workdir, user=user, privileged=privileged)
        try:
            if detach:
                pid = await process.start()
                if settings.json:
                    output.write_json({"id": container.id, "exec_id": process.exec_id, "pid": pid})
                return 0
            manner = Manner(
                terminal=tty,
                stdin=interactive,
                pass_signals=not (tty and interactive),
                keys=keys if tty else b"",
                ends_with_reader=True,
            )
            ended = await join(process, manner)
        except Left as left:
            output.note("\nleft the process running")
            return 0 if left.by_keys else OWN
        except BaseException:
            with suppress(MooredError):
                await process.delete(force=True)
            raise
        await process.delete()
        return ended.status & 0xFF

    with start_failures(own=1):
        status = run(settings, body)
    ctx.exit(status)


async def running_task(container: Container, name: str) -> Task:
    """Give the task of a container that runs. Raises FailedPrecondition for one that does not."""
    from moored.api.cli import lifetime
    from moored.api.cli.states import word

    now = word(await lifetime.state(container))
    if now == "paused":
        raise FailedPrecondition(f"container {name!r} is paused, let it go on with moorctl unpause {name}")
    if now != "running":
        raise FailedPrecondition(f"container {name!r} is {now}, start it with moorctl start {name}")
    try:
        return await container.task()
    except NotFound:
        raise FailedPrecondition(f"container {name!r} has just ended") from None
