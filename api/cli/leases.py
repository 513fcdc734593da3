"""`moorctl lease`: what keeps content and snapshots from being collected."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import InvalidArgument

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.kernel.ports.leases import Lease, Resource

EXPIRE = "containerd.io/gc.expire"


@click.group(
    "lease",
    epilog="""\b
Examples:
  moorctl lease ls
  moorctl lease create --expires 1h build""",
)
@global_options
def lease() -> None:
    """List, make and remove leases."""


@lease.command(
    "ls",
    epilog="""\b
JSON: {"leases": [{"id", "created", "expires", "labels",
  "resources": [{"type", "id"}]}]}
expires: empty for never; resources: with -v, else null

\b
Examples:
  moorctl lease ls -v""",
)
@click.option("--quiet", "-q", is_flag=True, help="Only ids.")
@click.option("--verbose", "-v", is_flag=True, help="What each holds.")
@global_options
@pass_settings
def ls(settings: Settings, quiet: bool, verbose: bool) -> None:
    """List leases."""
    from moored.api.cli.quantities import ago
    from moored.api.cli.session import run
    from moored.api.cli.tables import Column, table, terminal_width

    async def body(client: Client) -> list[tuple[Lease, list[Resource] | None]]:
        found = await client.leases.list()
        return [(one, list(await client.leases.resources(one.id)) if verbose else None) for one in found]

    found = run(settings, body)
    if settings.json:
        output.write_json({"leases": [_document(*one) for one in found]})
        return
    if quiet:
        output.write("".join(f"{one.id}\n" for one, _ in found))
        return
    columns = [Column("ID", least=12), Column("CREATED", rank=1), Column("EXPIRES", rank=2), Column("HOLDS", least=8)]
    now = time.time_ns()
    rows = [
        [
            one.id,
            ago(one.created_at, now),
            one.labels.get(EXPIRE, "never"),
            ", ".join(f"{r.type} {r.id}" for r in resources or ()) or "-",
        ]
        for one, resources in found
    ]
    if not verbose:
        columns, rows = columns[:3], [row[:3] for row in rows]
    output.write(table(columns, rows, terminal_width()))


def _document(one: Lease, resources: list[Resource] | None) -> dict[str, Any]:
    from moored.api.cli.quantities import timestamp

    held = None if resources is None else [{"type": r.type, "id": r.id} for r in resources]
    return {
        "id": one.id,
        "created": timestamp(one.created_at),
        "expires": one.labels.get(EXPIRE, ""),
        "labels": dict(one.labels),
        "resources": held,
    }


@lease.command(
    "create",
    epilog="""\b
JSON: {"leases": as in ls}

\b
Examples:
  moorctl lease create
  moorctl lease create --expires 1h build owner=ci""",
)
@click.argument("id_", metavar="[ID]", default="")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--expires", default="24h", show_default=True, metavar="TIME", help="When it ends by itself; 0 for never."
)
@global_options
@pass_settings
def create(settings: Settings, id_: str, labels: tuple[str, ...], expires: str) -> None:
    """Make a lease and print its id."""
    from moored.api.cli.asked import pairs
    from moored.api.cli.quantities import parse_duration
    from moored.api.cli.session import run

    if "=" in id_:
        id_, labels = "", (id_, *labels)
    try:
        seconds = parse_duration(expires)
    except ValueError as error:
        raise InvalidArgument(f"--expires: {error}") from error
    given = pairs(labels, "label")

    async def body(client: Client) -> Lease:
        return await client.leases.create(id_, seconds=seconds or None, labels=given)

    made = run(settings, body)
    if settings.json:
        output.write_json({"leases": [_document(made, [])]})
    else:
        output.write(f"{made.id}\n")


@lease.command(
    "rm",
    epilog="""\b
JSON: {"leases": [{"name", "result", "error"}]}

\b
Examples:
  moorctl lease rm --sync build""",
)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--sync", is_flag=True, help="Wait until what only they held is gone.")
@global_options
@pass_settings
def rm(settings: Settings, ids: tuple[str, ...], sync: bool) -> None:
    """Remove leases."""
    from moored.api.cli.several import each

    async def action(client: Client, id_: str) -> None:
        await client.leases.delete(id_, sync=sync)

    each(settings, ids, action, key="leases")
