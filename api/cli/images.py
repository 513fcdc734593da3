"""`moorctl images`, `tag` and `rmi`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from moored.api.cli import output
from moored.api.cli.completing import images as complete
from moored.api.cli.settings import Settings, global_options, global_options_without_a, pass_settings
from moored.kernel.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.kernel.ports.images import Image

AT_ONCE: Final = 8
"""Images that are looked into at one time."""


@dataclass(frozen=True, slots=True)
class Row:
    """An image and what its content tells: bytes that are there, the platform's; platforms that are there."""

    image: Image
    size: int
    platforms: Sequence[str]


@click.command(
    "images",
    epilog="""\b
JSON: {"images": [{"name", "digest", "media_type", "created", "updated",
  "size", "platforms": [TEXT], "labels"}]}
size: bytes of the platform's content that are there, compressed

\b
Examples:
  moorctl images
  moorctl images alpine
  moorctl images -q | xargs moorctl rmi
  moorctl --json images | jq -r '.images[].digest'""",
)
@click.argument("name", metavar="[IMAGE]", default="", shell_complete=complete)
@click.option("--quiet", "-q", is_flag=True, help="Only names.")
@click.option("--no-trunc", is_flag=True, help="Cut nothing.")
@click.option("--digests", is_flag=True, help="Whole digests.")
@global_options
@pass_settings
def images(settings: Settings, *, name: str, quiet: bool, no_trunc: bool, digests: bool) -> None:
    """List images, the youngest first; IMAGE is a name, or one without its tag."""
    from moored.api.cli.session import run

    async def body(client: Client) -> list[Row]:
        found = [image for image in await client.images.list() if _fits(image.name, name)]
        found.sort(key=lambda image: image.updated_at, reverse=True)
        if quiet:
            return [Row(image, 0, ()) for image in found]
        slots = asyncio.Semaphore(AT_ONCE)
        return list(await asyncio.gather(*(_row(client, image, slots) for image in found)))

    rows = run(settings, body)
    if settings.json:
        output.write_json({"images": [document(row) for row in rows]})
    elif quiet:
        output.write("".join(f"{row.image.name}\n" for row in rows))
    else:
        _show(rows, digests=digests, full=no_trunc)


def _fits(name: str, wanted: str) -> bool:
    from moored.kernel.imagespec.references import familiar

    if not wanted:
        return True
    names = {name, familiar(name)}
    bare = {text.partition("@")[0].rpartition(":")[0] for text in names}
    return wanted in names | bare


async def _row(client: Client, image: Image, slots: asyncio.Semaphore) -> Row:
    from moored.kernel.errors import MooredError

    async with slots:
        try:
            found = await client.images.platforms(image)
            return Row(image, await client.images.size(image), [str(platform) for platform in found])
        except MooredError:  # content that is gone, or is no image's, does not hide the others
            return Row(image, 0, ())


def document(row: Row) -> dict[str, Any]:
    """Give an image as --json has it."""
    from moored.api.cli.pull import document as named
    from moored.api.cli.quantities import timestamp

    image = row.image
    return {
        **named(image),
        "created": timestamp(image.created_at),
        "updated": timestamp(image.updated_at),
        "size": row.size,
        "platforms": list(row.platforms),
        "labels": dict(image.labels),
    }


def _show(rows: Sequence[Row], *, digests: bool, full: bool) -> None:
    from moored.api.cli.imagenames import digest_id
    from moored.api.cli.quantities import ago, size
    from moored.api.cli.tables import Column, table, terminal_width

    columns = [
        Column("REPOSITORY", least=16),
        Column("TAG", least=8),
        Column("DIGEST", rank=1, least=12),
        Column("CREATED", rank=3),
        Column("PLATFORM", rank=4, least=8),
        Column("SIZE", right=True, rank=2),
    ]
    now = time.time_ns()
    shown = []
    for row in rows:
        repository, tag = _split(row.image.name)
        digest = row.image.target.digest
        platforms = ", ".join(row.platforms)
        shown.append(
            [
                repository,
                tag,
                digest if digests or full else digest_id(digest),
                ago(row.image.created_at, now),
                platforms or "-",
                size(row.size) if row.size else "-",
            ]
        )
    output.write(table(columns, shown, None if full else terminal_width()))


def _split(name: str) -> tuple[str, str]:
    from moored.kernel.imagespec.references import familiar

    text, at, _ = familiar(name).partition("@")
    repository, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = text, ""
    return repository, tag or ("<digest>" if at else "<none>")


@click.command(
    "tag",
    epilog="""\b
JSON: {"images": [{"name", "digest", "media_type"}]}

\b
Examples:
  moorctl tag app registry.example.org/app:1.2""",
)
@click.argument("source", metavar="IMAGE", shell_complete=complete)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--keep", is_flag=True, help="Fail if a name is taken, rather than take it.")
@global_options
@pass_settings
def tag(settings: Settings, *, source: str, names: tuple[str, ...], keep: bool) -> None:
    """Give an image further names, which may be another image's so far."""
    from moored.api.cli import imagenames
    from moored.api.cli.pull import document as named
    from moored.api.cli.session import run

    wanted = [imagenames.whole(name) for name in names]

    async def body(client: Client) -> list[Image]:
        image = await imagenames.find(client, source)
        return [await client.images.tag(image.name, name, force=not keep) for name in wanted]

    made = run(settings, body)
    if settings.json:
        output.write_json({"images": [named(image) for image in made]})


@click.command(
    "rmi",
    epilog="""\b
JSON: {"images": [{"name", "result", "error"}]}

\b
Examples:
  moorctl rmi alpine
  moorctl rmi -f $(moorctl images -q)""",
)
@click.argument("names", nargs=-1, required=False, metavar="IMAGE...", shell_complete=complete)
@click.option("--force", "-f", is_flag=True, help="Those that containers were made of too.")
@click.option("--all", "-a", "everything", is_flag=True, help="All images.")
@click.option("--async", "later", is_flag=True, help="Do not wait until their content is gone.")
@global_options_without_a
@pass_settings
def rmi(settings: Settings, *, names: tuple[str, ...], force: bool, everything: bool, later: bool) -> None:
    """Remove names of images; content that no other name, container or lease needs goes too."""
    if not names and not everything:
        raise InvalidArgument("no image is named, wanted IMAGE... or --all")
    from moored.api.cli import imagenames
    from moored.api.cli.session import run
    from moored.api.cli.several import each

    if everything:

        async def listed(client: Client) -> list[str]:
            return [image.name for image in await client.images.list()]

        names = tuple(run(settings, listed))
    used: dict[str, list[str]] = {}
    known: list[bool] = []

    async def action(client: Client, name: str) -> str:
        image = await imagenames.find(client, name)
        if not force:
            if not known:
                used.update(await _users(client))
                known.append(True)
            if found := used.get(image.name):
                raise FailedPrecondition(
                    f"image {name!r} is used by container {', '.join(found[:3])}, remove that or use --force"
                )
        last = name == names[-1]
        await client.images.delete(image.name, sync=last and not later)
        return image.name

    each(settings, names, action, key="images")


async def _users(client: Client) -> Mapping[str, list[str]]:
    from moored.api.cli.identity import called

    found: dict[str, list[str]] = {}
    for container in await client.containers.list():
        found.setdefault(container.record.image, []).append(called(container))
    return found
