"""`moorctl inspect`: all that is known of a container or an image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import InvalidArgument, MooredError, NotFound

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.containers import Container


@click.command(
    "inspect",
    epilog="""\b
JSON: [{"kind": "container", ... as in ps, "snapshot_key", "updated", "spec",
  "network", "log", "extensions": {NAME: TYPE}} or {"kind": "image", ... as in
  images, "target", "manifest", "config", "missing": [DIGEST]}]

\b
Examples:
  moorctl inspect web
  moorctl inspect --type image alpine | jq '.[0].config.config.Env'
  moorctl inspect --format '{spec[process][args]}' web""",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=containers)
@click.option("--type", "kind", type=click.Choice(["container", "image"]), help="Which of them, where a name is both.")
@click.option(
    "--format", "-f", "form", default="", metavar="TEXT", help="Text with fields, such as {id} or {spec[process][cwd]}."
)
@global_options
@pass_settings
def inspect(settings: Settings, names: tuple[str, ...], kind: str | None, form: str) -> None:
    """Show all that is known of containers or images, as JSON."""
    from moored.api.cli.session import run

    async def body(client: Client) -> list[dict[str, Any]]:
        return [await _found(client, settings, name, kind) for name in names]

    found = run(settings, body)
    if form:
        output.write("".join(f"{formatted(form, one)}\n" for one in found))
    else:
        output.write_json(found)


def formatted(form: str, document: dict[str, Any]) -> str:
    """Fill fields in, `{spec[process][args][0]}`; what is no text is shown as JSON. Raises InvalidArgument."""
    import re

    def filled(match: re.Match[str]) -> str:
        value: Any = document
        for key in re.findall(r"[^\[\].]+", match[1]):
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InvalidArgument(f"there is no field {match[1]!r}, see moorctl inspect without --format") from None
        return value if isinstance(value, str) else json.dumps(value)

    return re.sub(r"\{([^{}]+)\}", filled, form)


async def _found(client: Client, settings: Settings, name: str, kind: str | None) -> dict[str, Any]:
    from moored.api.cli import identity, imagenames

    if kind != "image":
        try:
            return await _container(client, settings, await identity.find(client, name))
        except (NotFound, InvalidArgument):
            if kind:
                raise
    try:
        image = await imagenames.find(client, name)
    except NotFound:
        if kind:
            raise
        raise NotFound(f"there is no container or image {name!r} in namespace {client.namespace!r}") from None
    return await _image(client, image)


async def _container(client: Client, settings: Settings, container: Container) -> dict[str, Any]:
    from moored.api.cli import identity, lifetime, ps
    from moored.api.cli.home import home
    from moored.api.cli.network.membership import result_of
    from moored.api.cli.quantities import timestamp

    record = container.record
    state = await lifetime.state(container)
    try:
        spec: Any = await container.spec()
    except MooredError:
        spec = None
    notes = identity.notes(record.labels)
    return {
        "kind": "container",
        **ps.document(container, state),
        "snapshot_key": record.snapshot_key,
        "updated": timestamp(record.updated_at),
        "network": {"name": notes.network, **result_of(home(settings.address, client.namespace), container.id)}
        if identity.is_ours(record.labels)
        else None,
        "log": notes.log or None,
        "extensions": {name: typed.type_url for name, typed in record.extensions.items()},
        "spec": spec,
    }


async def _image(client: Client, image: Any) -> dict[str, Any]:
    import msgspec

    from moored.api.cli import images

    try:
        found = await client.images.platforms(image)
        row = images.Row(image, await client.images.size(image), [str(platform) for platform in found])
        missing = [one.digest for one in (await client.images.check(image)).missing]
        manifest: Any = msgspec.to_builtins((await client.images.manifest(image))[1])
        config: Any = msgspec.to_builtins(await client.images.config(image))
    except MooredError:
        row, missing, manifest, config = images.Row(image, 0, ()), [image.target.digest], None, None
    target = image.target
    return {
        "kind": "image",
        **images.document(row),
        "target": {
            "media_type": target.media_type,
            "digest": target.digest,
            "size": target.size,
            "annotations": dict(target.annotations),
        },
        "manifest": manifest,
        "config": config,
        "missing": missing,
    }
