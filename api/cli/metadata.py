"""`moorctl metadata`: a copy of all metadata of a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client


@click.group(
    "metadata",
    epilog="""\b
Examples:
  moorctl metadata backup /srv/backup/moored-metadata""",
)
@global_options
def metadata() -> None:
    """Copy the names, labels and relations that a daemon keeps of everything."""


@metadata.command(
    "backup",
    epilog="""\b
JSON: {"file", "size"}

\b
Examples:
  moorctl metadata backup "/srv/backup/metadata-$(date +%F)"
  moored metadata restore /srv/backup/metadata-2026-01-31""",
)
@click.argument("file", metavar="FILE")
@global_options
@pass_settings
def backup(settings: Settings, file: str) -> None:
    """Write a copy of all metadata, as it is at one moment, to a new file that only you can read.

    The daemon goes on meanwhile. Content and the files of snapshots are not in it. `moored metadata restore` puts it
    back, into a root without metadata.
    """
    from moored.api.cli.session import run

    target = Path(file)

    async def body(client: Client) -> int:
        return await _saved(client, target)

    size = run(settings, body)
    if settings.json:
        output.write_json({"file": file, "size": size})


async def _saved(client: Client, target: Path) -> int:
    """Write the file; gives its size. It is made whole or not at all."""
    import asyncio
    from contextlib import aclosing

    from moored.api.errors import classify
    from moored.kernel.newfile import new_file

    size = 0
    try:
        with new_file(target) as written:
            async with aclosing(client.daemon.backup()) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(written.write, piece)
                    size += len(piece)
    except OSError as error:
        raise classify(error) from error
    return size
