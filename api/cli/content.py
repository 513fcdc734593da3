"""`moorctl content`: blobs by their digests."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import InvalidArgument

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.kernel.ports.content import Info, Status


@click.group(
    "content",
    epilog="""\b
Examples:
  moorctl content ls
  moorctl content get sha256:... | jq .""",
)
@global_options
def content() -> None:
    """Look into the content store."""


@content.command(
    "ls",
    epilog="""\b
JSON: {"content": [{"digest", "size", "created", "updated", "labels"}]}

\b
Examples:
  moorctl content ls -q
  moorctl content ls 'labels."containerd.io/uncompressed"'""",
)
@click.argument("filters", nargs=-1, metavar="[FILTER]...")
@click.option("--quiet", "-q", is_flag=True, help="Only digests.")
@global_options
@pass_settings
def ls(settings: Settings, filters: tuple[str, ...], quiet: bool) -> None:
    """List blobs, those that match any of the filters."""
    from moored.api.cli.quantities import ago, size
    from moored.api.cli.session import run
    from moored.api.cli.tables import Column, table, terminal_width

    async def body(client: Client) -> list[Info]:
        return [info async for info in client.content.walk(*filters)]

    found = run(settings, body)
    if settings.json:
        output.write_json({"content": [document(info) for info in found]})
        return
    if quiet:
        output.write("".join(f"{info.digest}\n" for info in found))
        return
    now = time.time_ns()
    columns = [
        Column("DIGEST", least=19),
        Column("SIZE", right=True),
        Column("AGE"),
        Column("LABELS", least=10, rank=1),
    ]
    rows = [
        [
            info.digest,
            size(info.size),
            ago(info.created_at, now),
            ", ".join(f"{key}={value}" for key, value in info.labels.items()),
        ]
        for info in found
    ]
    output.write(table(columns, rows, terminal_width()))


def document(info: Info) -> dict[str, Any]:
    """Give a blob as --json has it."""
    from moored.api.cli.quantities import timestamp

    return {
        "digest": str(info.digest),
        "size": info.size,
        "created": timestamp(info.created_at),
        "updated": timestamp(info.updated_at),
        "labels": dict(info.labels),
    }


@content.command(
    "get",
    epilog="""\b
Examples:
  moorctl content get sha256:... > layer.tar.gz""",
)
@click.argument("digest")
@global_options
@pass_settings
def get(settings: Settings, digest: str) -> None:
    """Write a blob to standard output."""
    from moored.api.cli.joining import write_all
    from moored.api.cli.session import run

    async def body(client: Client) -> None:
        async with await client.content.reader(digest) as reader:
            async for piece in reader.chunks():
                await asyncio.to_thread(write_all, 1, piece)

    run(settings, body)


@content.command(
    "verify",
    epilog="""\b
JSON: {"content": [{"name", "result", "error"}]}

\b
Examples:
  moorctl content verify $(moorctl content ls -q)""",
)
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@global_options
@pass_settings
def verify(settings: Settings, digests: tuple[str, ...]) -> None:
    """Read blobs whole and see that they are what their digests say."""
    from moored.api.cli.several import each

    async def action(client: Client, digest: str) -> str:
        await client.content.verify(digest)
        return f"{digest} ok"

    each(settings, digests, action, key="content")


@content.command(
    "label",
    epilog="""\b
JSON: {"content": as in ls}

\b
Examples:
  moorctl content label sha256:... containerd.io/gc.root=keep""",
)
@click.argument("digest")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
@global_options
@pass_settings
def label(settings: Settings, digest: str, labels: tuple[str, ...]) -> None:
    """Set labels of a blob; an empty value removes one."""
    from moored.api.cli.asked import pairs
    from moored.api.cli.session import run

    given = pairs(labels, "label")

    async def body(client: Client) -> Info:
        return await client.content.label(digest, given)

    info = run(settings, body)
    if settings.json:
        output.write_json({"content": [document(info)]})


@content.command(
    "rm",
    epilog="""\b
JSON: {"content": [{"name", "result", "error"}]}

\b
Examples:
  moorctl content rm sha256:...""",
)
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@global_options
@pass_settings
def rm(settings: Settings, digests: tuple[str, ...]) -> None:
    """Remove blobs, whoever refers to them."""
    from moored.api.cli.several import each

    async def action(client: Client, digest: str) -> None:
        await client.content.delete(digest)

    each(settings, digests, action, key="content")


@content.command(
    "ingests",
    epilog="""\b
JSON: {"ingests": [{"ref", "offset", "total", "started", "updated",
  "expected"}]}

\b
Examples:
  moorctl content ingests
  moorctl content ingests --abort layer-sha256:...""",
)
@click.option("--abort", "aborted", multiple=True, metavar="REF", help="Give this one up.")
@global_options
@pass_settings
def ingests(settings: Settings, aborted: tuple[str, ...]) -> None:
    """List what is being written."""
    from moored.api.cli.quantities import ago, size, timestamp
    from moored.api.cli.session import run
    from moored.api.cli.tables import Column, table, terminal_width

    if not all(aborted):
        raise InvalidArgument("--abort needs the ref of an ingest")

    async def body(client: Client) -> list[Status]:
        for ref in aborted:
            await client.content.abort(ref)
        return await client.content.list_statuses()

    found = run(settings, body)
    if settings.json:
        rows = [
            {
                "ref": one.ref,
                "offset": one.offset,
                "total": one.total,
                "started": timestamp(one.started_at),
                "updated": timestamp(one.updated_at),
                "expected": one.expected,
            }
            for one in found
        ]
        output.write_json({"ingests": rows})
        return
    now = time.time_ns()
    columns = [
        Column("REF", least=20),
        Column("SIZE", right=True),
        Column("OF", right=True),
        Column("STARTED"),
        Column("UPDATED", rank=1),
    ]
    cells = [
        [
            one.ref,
            size(one.offset),
            size(one.total) if one.total else "-",
            ago(one.started_at, now),
            ago(one.updated_at, now),
        ]
        for one in found
    ]
    output.write(table(columns, cells, terminal_width()))
