"""Entry point of `moorctl`: the root command, and errors as one line with exit status 1 (2 for wrong usage).

Modules that are slow to import (grpc, rich) are imported by the commands that need them, so that help is quick.
"""

from __future__ import annotations

import os
from typing import Any

import click

from moored.api.cli.config import config
from moored.api.cli.plugins import plugins
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import MooredError


class _Failed(click.ClickException):
    """An error of the set on its way to standard error."""

    def show(self, file: Any = None) -> None:
        text = " ".join(self.message.split())
        shown = "".join(c if c.isprintable() else "?" for c in text)
        click.echo(f"moorctl: {shown}", file=file, err=file is None)


class _Root(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MooredError as error:
            raise _Failed(str(error)) from error


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"moorctl {client_version()}")
        ctx.exit()


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="""\b
Examples:
  moorctl plugins ls
  moorctl plugins why overlayfs
  moorctl --json config check
  moorctl -a /run/containerd/containerd.sock version""",
)
@global_options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print moorctl's version.",
)
def root() -> None:
    """Ask a running moored daemon, over its API.

    The options of this command may also stand after the name of any other. Exit status: 0, 1 for an error, 2 for wrong
    usage.
    """


root.add_command(plugins)
root.add_command(config)


@root.command(
    "version",
    epilog="""\b
JSON: {"client": {"version"}, "server": {"version", "revision"} or null}

\b
Examples:
  moorctl version
  moorctl -a /run/containerd/containerd.sock version""",
)
@global_options
@pass_settings
def version(settings: Settings) -> None:
    """Print the versions of moorctl and of the daemon; containerd's is told too."""
    from moored.api.cli import render
    from moored.api.cli.connection import connect

    mine = client_version()
    try:
        with connect(settings) as daemon:
            theirs = daemon.version()
    except MooredError:
        if settings.json:
            render.write_json({"client": {"version": mine}, "server": None})
        else:
            render.write(f"client  {mine}\n")
        raise
    if settings.json:
        server = {"version": theirs.version, "revision": theirs.revision}
        render.write_json({"client": {"version": mine}, "server": server})
        return
    revision = f" (revision {theirs.revision})" if theirs.revision else ""
    render.write(f"client  {mine}\nserver  {render.printable(theirs.version + revision)}\n")


def client_version() -> str:
    """The version of the installed distribution, `unknown` where moored runs from a checkout."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("moored")
    except PackageNotFoundError:
        return "unknown"


def main() -> None:
    """Run `moorctl` with the arguments of the process; ends in SystemExit."""
    # Read when grpc is imported: its own log lines would stand beside the one line that an error gets.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    root.main(prog_name="moorctl")
