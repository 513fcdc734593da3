"""`moorctl diff`: what a container has changed in its image's files."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Final

import click

from moored.api.cli import output
from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"


@click.command(
    "diff",
    epilog="""\b
JSON: {"changes": [{"kind", "path"}]}, kind: added, changed or deleted

\b
Examples:
  moorctl diff web""",
)
@click.argument("name", metavar="CONTAINER", shell_complete=containers)
@global_options
@pass_settings
def diff(settings: Settings, name: str) -> None:
    """List what a container has added (A), changed (C) and deleted (D) in its image's files."""
    from moored.api.cli.session import run

    async def body(client: Client) -> list[tuple[str, str]]:
        from moored.api.cli import identity
        from moored.api.cli.changes import PLAIN, layer, parent_view

        container = await identity.find(client, name)
        async with client.lease() as leased:
            changed = await layer(leased, container, PLAIN)
            data = await leased.content.read(changed.digest, limit=changed.size)
            async with parent_view(leased, container) as (lower, _):
                return await asyncio.to_thread(_changes, data, lower)

    found = run(settings, body)
    if settings.json:
        output.write_json({"changes": [{"kind": kind, "path": path} for kind, path in found]})
    else:
        output.write("".join(f"{kind[0].upper()} {output.printable(path)}\n" for kind, path in found))


def _changes(data: bytes, lower: object) -> list[tuple[str, str]]:
    from moored.api.cli.filetree import Root
    from moored.kernel.mounts import mounted

    with mounted(lower) as place:  # type: ignore[arg-type]
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            root = Root(fd, "image:")
            return sorted(
                listed(io.BytesIO(data), lambda path: bool(root.kind(path, follow=False))), key=lambda one: one[1]
            )
        finally:
            os.close(fd)


def listed(layer: IO[bytes], was_there: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Give (kind, path) of each entry of a layer's tar; was_there tells of a path in what is below."""
    with tarfile.open(fileobj=layer, mode="r:") as archive:
        for member in archive:
            path = "/" + member.name.strip("/").removeprefix("./")
            folder, _, name = path.rpartition("/")
            if path in ("/", "/.") or name == OPAQUE:
                continue
            if name.startswith(WHITEOUT):
                yield "deleted", f"{folder}/{name.removeprefix(WHITEOUT)}"
            else:
                yield ("changed" if was_there(path) else "added"), path
