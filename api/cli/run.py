"""`moorctl run` and `moorctl create`."""

from __future__ import annotations

from typing import Any

import click

from moored.api.cli import output
from moored.api.cli.asked import asked, container_options
from moored.api.cli.settings import Settings, long_global_options, pass_settings

_PASS_ON = {"ignore_unknown_options": False, "allow_interspersed_args": False, "help_option_names": ["--help"]}


@click.command(
    "run",
    context_settings=_PASS_ON,
    epilog="""\b
JSON, with -d: {"id", "name"}

\b
Examples:
  moorctl run -it --rm alpine sh
  moorctl run -d --name web -p 8080:80 --restart unless-stopped nginx
  moorctl run --rm -v "$PWD":/src -w /src -m 512m --cpus 1.5 golang go vet
  moorctl run --rm --net host --user 1000:1000 busybox id""",
)
@click.option("--detach", "-d", is_flag=True, help="Run in the background and print the id.")
@click.option("--detach-keys", metavar="KEYS", help="Keys that leave the container running, ctrl-p,ctrl-q.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, show_default=True, help="Pass signals on to the process.")
@container_options
@long_global_options
@pass_settings
@click.pass_context
def run(ctx: click.Context, settings: Settings, /, *, detach_keys: str | None, sig_proxy: bool, **values: Any) -> None:
    """Make a container of IMAGE and run COMMAND, or what the image says, in it.

    The image is fetched if it is not there. Exits as the process does; with 125 for an error of its own, 126 for a
    program that cannot be run, 127 for one that is not there.
    """
    wanted = asked(values)
    from moored.api.cli import running
    from moored.api.cli.failing import start_failures

    with start_failures():
        status = running.run(settings, wanted, detach_keys, pass_signals=sig_proxy)
    ctx.exit(status)


@click.command(
    "create",
    context_settings=_PASS_ON,
    epilog="""\b
JSON: {"id", "name"}

\b
Examples:
  moorctl create --name db -v data:/var/lib/postgresql/data postgres
  moorctl start db""",
)
@container_options
@long_global_options
@pass_settings
def create(settings: Settings, /, **values: Any) -> None:
    """Make a container of IMAGE, and print its id; `start` starts it."""
    wanted = asked({**values, "detach": True})
    from moored.api.cli import running

    container = running.create(settings, wanted)
    from moored.api.cli.identity import name_of

    if settings.json:
        output.write_json({"id": container.id, "name": name_of(container)})
    else:
        output.write(f"{container.id}\n")
