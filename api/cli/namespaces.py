"""`moorctl namespace`: the namespaces of a daemon, each with containers and images of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.namespaces import Namespace


@click.group(
    "namespace",
    epilog="""\b
Examples:
  moorctl namespace ls
  moorctl namespace label k8s.io containerd.io/defaults/snapshotter=native""",
)
@global_options
def namespace() -> None:
    """List, make and remove namespaces."""


@namespace.command(
    "ls",
    epilog="""\b
JSON: {"namespaces": [{"name", "labels"}]}

\b
Examples:
  moorctl namespace ls -q""",
)
@click.option("--quiet", "-q", is_flag=True, help="Only names.")
@global_options
@pass_settings
def ls(settings: Settings, quiet: bool) -> None:
    """List namespaces."""
    from moored.api.cli.session import run
    from moored.api.cli.tables import Column, table, terminal_width

    async def body(client: Client) -> list[Namespace]:
        return await client.namespaces.list()

    found = run(settings, body)
    if settings.json:
        output.write_json({"namespaces": [{"name": one.name, "labels": dict(one.labels)} for one in found]})
    elif quiet:
        output.write("".join(f"{one.name}\n" for one in found))
    else:
        rows = [[one.name, ", ".join(f"{key}={value}" for key, value in one.labels.items())] for one in found]
        output.write(table([Column("NAME"), Column("LABELS", least=10)], rows, terminal_width()))


@namespace.command(
    "create",
    epilog="""\b
JSON: {"namespaces": [{"name", "labels"}]}

\b
Examples:
  moorctl namespace create build owner=ci""",
)
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@global_options
@pass_settings
def create(settings: Settings, name: str, labels: tuple[str, ...]) -> None:
    """Make a namespace."""
    from moored.api.cli.asked import pairs
    from moored.api.cli.session import run

    given = pairs(labels, "label")

    async def body(client: Client) -> Namespace:
        return await client.namespaces.create(name, given)

    made = run(settings, body)
    if settings.json:
        output.write_json({"namespaces": [{"name": made.name, "labels": dict(made.labels)}]})


@namespace.command(
    "label",
    epilog="""\b
JSON: {"namespaces": [{"name", "labels"}]}

\b
Examples:
  moorctl namespace label build owner=   # removes it""",
)
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
@global_options
@pass_settings
def label(settings: Settings, name: str, labels: tuple[str, ...]) -> None:
    """Set labels of a namespace; an empty value removes one."""
    from moored.api.cli.asked import pairs
    from moored.api.cli.session import run

    given = pairs(labels, "label")

    async def body(client: Client) -> Namespace:
        await client.namespaces.label(name, given)
        return await client.namespaces.get(name)

    now = run(settings, body)
    if settings.json:
        output.write_json({"namespaces": [{"name": now.name, "labels": dict(now.labels)}]})


@namespace.command(
    "rm",
    epilog="""\b
JSON: {"namespaces": [{"name", "result", "error"}]}

\b
Examples:
  moorctl namespace rm build""",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@global_options
@pass_settings
def rm(settings: Settings, names: tuple[str, ...]) -> None:
    """Remove namespaces that are empty."""
    from moored.api.cli.several import each

    async def action(client: Client, name: str) -> None:
        await client.namespaces.delete(name)

    each(settings, names, action, key="namespaces")
