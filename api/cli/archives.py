"""`moorctl load` and `moorctl save`: images from and to archives, OCI layouts that Docker reads too."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.completing import images
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.kernel.ports.images import Image

PIECE = 1 << 20


@click.command(
    "load",
    epilog="""\b
JSON: {"images": [{"name", "digest", "media_type"}]}

\b
Examples:
  moorctl load -i images.tar
  docker save app | moorctl load""",
)
@click.option("--input", "-i", "source", metavar="FILE", help="Read from here; else from standard input.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="In place of the host's.")
@click.option("--all-platforms", is_flag=True, help="Every platform of the archive.")
@click.option("--no-unpack", is_flag=True, help="Import only.")
@click.option("--prefix", default="", metavar="NAME", help="Only names that begin so; put before bare tags.")
@click.option("--snapshotter", default="", metavar="NAME", help="Unpack for this one.")
@click.option("--local/--no-local", default=None, help="Whether moorctl takes the archive apart, or the daemon does.")
@global_options
@pass_settings
def load(
    settings: Settings,
    *,
    source: str | None,
    quiet: bool,
    platforms: tuple[str, ...],
    all_platforms: bool,
    no_unpack: bool,
    prefix: str,
    snapshotter: str,
    local: bool | None,
) -> None:
    """Read images from an archive: an OCI layout or what `docker save` writes, compressed or not."""
    from moored.api.cli.progress import shown
    from moored.api.cli.pull import document
    from moored.api.cli.session import run
    from moored.api.cli.terminal import STDIN, is_terminal
    from moored.kernel.imagespec.platforms import parse

    if source is None and is_terminal(STDIN):
        raise InvalidArgument("standard input is a terminal, wanted an archive there or --input FILE")
    if source is not None and not Path(source).is_file():
        raise NotFound(f"there is no file {source!r}")
    wanted = [parse(text) for text in platforms]

    async def body(client: Client) -> list[Image]:
        with shown(quiet=quiet or settings.json, no_color=settings.no_color) as report:
            return await client.import_archive(
                Path(source) if source is not None else _typed(),
                prefix=prefix,
                platforms=wanted,
                all_platforms=all_platforms,
                unpack=not no_unpack,
                snapshotter=snapshotter,
                progress=report,
                local=local,
            )

    found = run(settings, body)
    if settings.json:
        output.write_json({"images": [document(image) for image in found]})
    else:
        output.write("".join(f"{image.name}\n" for image in found))


async def _typed() -> AsyncGenerator[bytes]:
    import asyncio

    while piece := await asyncio.to_thread(sys.stdin.buffer.read, PIECE):
        yield piece


@click.command(
    "save",
    epilog="""\b
JSON, with -o: {"images": [NAME], "file", "size"}

\b
Examples:
  moorctl save -o images.tar alpine busybox
  moorctl save app | ssh host docker load""",
)
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=images)
@click.option("--output", "-o", "target", metavar="FILE", help="Write here; else to standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="In place of the host's.")
@click.option("--all-platforms", is_flag=True, help="Every platform of the images.")
@click.option("--local/--no-local", default=None, help="Whether moorctl puts the archive together, or the daemon does.")
@global_options
@pass_settings
def save(
    settings: Settings,
    *,
    names: tuple[str, ...],
    target: str | None,
    quiet: bool,
    platforms: tuple[str, ...],
    all_platforms: bool,
    local: bool | None,
) -> None:
    """Write images to an archive, an OCI layout that `docker load` reads too."""
    import asyncio

    from moored.api.cli import imagenames
    from moored.api.cli.joining import write_all
    from moored.api.cli.progress import shown
    from moored.api.cli.session import run
    from moored.api.cli.terminal import STDOUT, is_terminal
    from moored.kernel.imagespec.platforms import parse

    if target is None and is_terminal(STDOUT):
        raise InvalidArgument("standard output is a terminal, wanted it elsewhere or --output FILE")
    wanted = [parse(text) for text in platforms]

    async def write(data: bytes) -> None:
        await asyncio.to_thread(write_all, STDOUT, data)

    async def body(client: Client) -> list[str]:
        found = [(await imagenames.find(client, name)).name for name in names]
        with shown(quiet=quiet or settings.json, no_color=settings.no_color) as report:
            place: Any = Path(target) if target is not None else write
            await client.export_archive(
                found, place, platforms=wanted, all_platforms=all_platforms, progress=report, local=local
            )
        return found

    found = run(settings, body)
    if settings.json and target is not None:
        output.write_json({"images": found, "file": target, "size": Path(target).stat().st_size})
