"""`moorctl cp`: files into and out of containers, whatever links the container has laid."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings
from moored.kernel.errors import InvalidArgument

if TYPE_CHECKING:
    from moored.api.cli.copying import Copier
    from moored.api.cli.filetree import Root
    from moored.api.client import Client


@click.command(
    "cp",
    epilog="""\b
JSON: {"files", "bytes", "left_out": [PATH]}

\b
Examples:
  moorctl cp web:/etc/nginx/nginx.conf .
  moorctl cp site/. web:/usr/share/nginx/html
  moorctl cp web:/var/log - | tar -t
  tar -c data | moorctl cp - web:/srv""",
)
@click.argument("source", metavar="CONTAINER:PATH|PATH|-")
@click.argument("target", metavar="CONTAINER:PATH|PATH|-")
@click.option("--archive", "-a", is_flag=True, help="Keep owners and setuid bits.")
@click.option("--follow-link", "-L", is_flag=True, help="Copy what a link in SOURCE leads to.")
@click.option("--quiet", "-q", is_flag=True, help="Do not tell what was left out.")
@global_options_without_a
@pass_settings
def cp(settings: Settings, *, source: str, target: str, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files or folders between a container, running or not, and the host.

    A folder's contents are copied with /. at its end; - is a tar archive on standard input or output. Paths of a
    container start at its root. Devices, FIFOs and sockets are left out.
    """
    from moored.api.cli.copying import Copier
    from moored.api.cli.session import run

    ends = _parse(source), _parse(target)
    if (ends[0][0] is None) == (ends[1][0] is None):
        raise InvalidArgument("one of source and target must be CONTAINER:PATH, and only one")
    copier = Copier(keep=archive)

    async def body(client: Client) -> None:
        async with AsyncExitStack() as stack:
            roots = [await _root(client, stack, name, write=at == 1) for at, (name, _) in enumerate(ends)]
            await asyncio.to_thread(_copy, copier, roots, ends[0][1], ends[1][1], follow_link)

    run(settings, body)
    if settings.json and target != "-":
        output.write_json({"files": copier.files, "bytes": copier.size, "left_out": copier.left_out})
    elif copier.left_out and not quiet:
        some = ", ".join(copier.left_out[:3]) + (", ..." if len(copier.left_out) > 3 else "")
        output.note(f"left out what is no file, folder or link: {some}")


def _parse(text: str) -> tuple[str | None, str]:
    """Container and path; a path of the host that has a colon begins with / or ./."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        return None, text
    if not path:
        raise InvalidArgument(f"{text!r} has no path, wanted CONTAINER:PATH")
    return name, path if path.startswith("/") else f"/{path}"


async def _root(client: Client, stack: AsyncExitStack, name: str | None, *, write: bool) -> Root:
    from moored.api.cli import identity
    from moored.api.cli.filetree import container_root, host_root

    if name is None:
        return stack.enter_context(host_root())
    container = await identity.find(client, name)
    return await stack.enter_async_context(container_root(client, container, write=write))


def _copy(copier: Copier, roots: list[Any], source: str, target: str, follow: bool) -> None:
    if target == "-":
        if sys.stdout.isatty():
            raise InvalidArgument("standard output is a terminal, wanted a file or a program there for the archive")
        copier.to_tar(roots[0], source, sys.stdout.buffer, follow=follow)
    elif source == "-":
        copier.from_tar(sys.stdin.buffer, roots[1], target)
    else:
        copier.copy(roots[0], source, roots[1], target, follow=follow)
