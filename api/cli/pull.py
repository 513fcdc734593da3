"""`moorctl pull` and `moorctl push`: images from and to registries, with Docker's own credentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.completing import images
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings
from moored.kernel.errors import InvalidArgument, MooredError, NotFound, PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.registries import RegistryOptions
    from moored.kernel.imagespec.platforms import Platform
    from moored.kernel.ports.images import Image


def registry_options(command: Any) -> Any:
    """Give a command the options that say how a registry is reached."""
    for option in (
        click.option("--local/--no-local", default=None, help="Whether moorctl moves the data, or the daemon does."),
        click.option("--hosts-dir", default="", metavar="FOLDER", help="Folder of HOST/hosts.toml, as certs.d."),
        click.option("--plain-http", is_flag=True, help="Use http for the registry."),
        click.option("--user", "-u", default="", metavar="USER[:SECRET]", help="In place of Docker's credentials."),
    ):
        command = option(command)
    return command


@click.command(
    "pull",
    epilog="""\b
JSON: {"images": [{"name", "digest", "media_type"}]}

\b
Examples:
  moorctl pull alpine
  moorctl pull --platform linux/arm64 --no-unpack registry.example.org/app:1.2
  moorctl -n k8s.io pull registry.k8s.io/pause:3.10""",
)
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=images)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="In place of the host's.")
@click.option("--all-platforms", is_flag=True, help="Every platform of the image.")
@click.option("--no-unpack", is_flag=True, help="Fetch only.")
@click.option("--snapshotter", default="", metavar="NAME", help="Unpack for this one.")
@registry_options
@global_options_without_a
@pass_settings
def pull(
    settings: Settings,
    /,
    *,
    names: tuple[str, ...],
    quiet: bool,
    platforms: tuple[str, ...],
    all_platforms: bool,
    no_unpack: bool,
    snapshotter: str,
    **registry: Any,
) -> None:
    """Fetch images from their registries and unpack them.

    `alpine` is docker.io/library/alpine:latest. Credentials are those of `docker login`.
    """
    from moored.api.cli.imagenames import whole
    from moored.api.cli.session import run
    from moored.kernel.imagespec.platforms import parse

    references = [whole(name) for name in names]
    wanted = [parse(text) for text in platforms]

    async def body(client: Client) -> list[Image]:
        return [
            await fetch(
                client,
                reference,
                platforms=wanted,
                all_platforms=all_platforms,
                unpack=not no_unpack,
                snapshotter=snapshotter,
                quiet=quiet or settings.json,
                no_color=settings.no_color,
                **registry,
            )
            for reference in references
        ]

    found = run(settings, body)
    if settings.json:
        output.write_json({"images": [document(image) for image in found]})
        return
    output.write("".join(f"{image.name}\n" for image in found))


def document(image: Image) -> dict[str, Any]:
    """Give an image's name and target as --json has them."""
    return {"name": image.name, "digest": image.target.digest, "media_type": image.target.media_type}


async def fetch(
    client: Client,
    reference: str,
    *,
    platforms: Sequence[Platform] = (),
    all_platforms: bool = False,
    unpack: bool = True,
    snapshotter: str = "",
    quiet: bool = False,
    no_color: bool = False,
    local: bool | None = None,
    hosts_dir: str = "",
    plain_http: bool = False,
    user: str = "",
) -> Image:
    """Fetch an image, showing how far it is. Raises the registry's errors with what to do next."""
    from moored.api.cli.progress import shown

    with shown(quiet=quiet, no_color=no_color) as report:
        try:
            return await client.pull(
                reference,
                platforms=platforms,
                all_platforms=all_platforms,
                unpack=unpack,
                snapshotter=snapshotter,
                registry=registry_of(hosts_dir=hosts_dir, plain_http=plain_http, user=user),
                progress=report,
                local=local,
            )
        except MooredError as error:
            raise _advised(error, reference) from error


def registry_of(*, hosts_dir: str, plain_http: bool, user: str) -> RegistryOptions:
    """Give the options of a registry. Raises InvalidArgument for a user whose secret cannot be asked for."""
    from moored.api.client.registries import RegistryOptions
    from moored.api.registry.credentials import Credentials, DockerConfig

    if not user:
        return RegistryOptions(credentials=DockerConfig().__call__, hosts_folder=hosts_dir, plain_http=plain_http)
    name, colon, secret = user.partition(":")
    if not colon:
        secret = _ask_secret(name)

    async def lookup(_: str) -> Credentials | None:
        return Credentials(name, secret)

    return RegistryOptions(credentials=lookup, hosts_folder=hosts_dir, plain_http=plain_http)


def _ask_secret(name: str) -> str:
    from moored.api.cli.terminal import STDIN, is_terminal

    if not is_terminal(STDIN):
        raise InvalidArgument(f"user {name!r} has no secret, wanted --user NAME:SECRET where it cannot be asked for")
    return str(click.prompt(f"Secret of {name}", hide_input=True, err=True))


def _advised(error: MooredError, reference: str) -> MooredError:
    host = reference.partition("/")[0]
    if isinstance(error, (PermissionDenied, Unauthenticated)):
        return type(error)(f"{error.text}; log in with docker login {host}, or use --user")
    if isinstance(error, NotFound) and reference not in error.text:
        return NotFound(f"{reference}: {error.text}")
    return error


@click.command(
    "push",
    epilog="""\b
JSON: {"images": [{"name", "digest", "media_type"}]}, name: where it went

\b
Examples:
  moorctl tag app registry.example.org/app:1.2
  moorctl push registry.example.org/app:1.2""",
)
@click.argument("name", metavar="IMAGE", shell_complete=images)
@click.argument("target", metavar="[REFERENCE]", default="")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Only these.")
@registry_options
@global_options_without_a
@pass_settings
def push(
    settings: Settings,
    /,
    *,
    name: str,
    target: str,
    quiet: bool,
    platforms: tuple[str, ...],
    local: bool | None,
    **registry: Any,
) -> None:
    """Send an image to the registry that its name tells, or to another REFERENCE."""
    from moored.api.cli import imagenames
    from moored.api.cli.progress import shown
    from moored.api.cli.session import run
    from moored.kernel.imagespec.platforms import parse

    wanted = [parse(text) for text in platforms]
    place = imagenames.whole(target) if target else ""

    async def body(client: Client) -> Image:
        image = await imagenames.find(client, name)
        with shown(quiet=quiet or settings.json, no_color=settings.no_color) as report:
            try:
                await client.push(
                    image.name, place, platforms=wanted, registry=registry_of(**registry), progress=report, local=local
                )
            except MooredError as error:
                raise _advised(error, place or image.name) from error
        return image

    image = run(settings, body)
    if settings.json:
        output.write_json({"images": [{**document(image), "name": place or image.name}]})
    else:
        output.write(f"{place or image.name}\n")
