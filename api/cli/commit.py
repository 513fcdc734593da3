"""`moorctl commit`: an image of what a container has become."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from moored.api.cli import output
from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings
from moored.kernel.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.containers import Container
    from moored.kernel.ports.images import Descriptor, Image

REFERENCE: Final = "containerd.io/gc.ref.content"
UNCOMPRESSED: Final = "containerd.io/uncompressed"


@click.command(
    "commit",
    epilog="""\b
JSON: {"images": [{"name", "digest", "media_type"}]}

\b
Examples:
  moorctl commit web app:snapshot
  moorctl commit -m 'with curl' -c 'CMD ["sh"]' -c 'ENV A=b' web app:2""",
)
@click.argument("name", metavar="CONTAINER", shell_complete=containers)
@click.argument("target", metavar="IMAGE")
@click.option("--author", "-a", default="", metavar="TEXT", help="Who made it.")
@click.option("--message", "-m", default="", metavar="TEXT", help="Comment in the image's history.")
@click.option(
    "--change",
    "-c",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR.",
)
@click.option("--no-pause", is_flag=True, help="Let the container go on meanwhile.")
@global_options_without_a
@pass_settings
def commit(
    settings: Settings, *, name: str, target: str, author: str, message: str, changes: tuple[str, ...], no_pause: bool
) -> None:
    """Make an image of a container: its image's layers and one of what it has changed. Volumes are no part of it."""
    from moored.api.cli.imagenames import whole
    from moored.api.cli.pull import document
    from moored.api.cli.session import run

    reference = whole(target)
    for change in changes:
        changed({}, change)  # the errors before any work

    async def body(client: Client) -> Image:
        from moored.api.cli import identity
        from moored.api.cli.changes import GZIP, layer

        container = await identity.find(client, name)
        async with client.lease() as leased:
            async with _still(container, pause=not no_pause):
                made = await layer(leased, container, GZIP)
            history = {"author": author, "comment": message, "created_by": "moorctl commit"}
            return await _image(leased, container, reference, layer=made, changes=changes, history=history)

    image = run(settings, body)
    if settings.json:
        output.write_json({"images": [document(image)]})
    else:
        output.write(f"{image.target.digest}\n")


@asynccontextmanager
async def _still(container: Container, *, pause: bool) -> AsyncGenerator[None]:
    """Freeze a container that runs, for the block."""
    from moored.api.cli import lifetime
    from moored.api.cli.states import word

    if not pause or word(await lifetime.state(container)) != "running":
        yield
        return
    task = await container.task()
    await task.pause()
    try:
        yield
    finally:
        await task.resume()


async def _image(
    leased: Client,
    container: Container,
    reference: str,
    *,
    layer: Descriptor,
    changes: Sequence[str],
    history: Mapping[str, str],
) -> Image:
    from moored.kernel.imagespec import media
    from moored.kernel.ports.images import Descriptor, Image

    base = await container.image()
    _, manifest = await leased.images.manifest(base)
    config: dict[str, Any] = json.loads(await leased.content.read(manifest.config.digest))
    labels = (await leased.content.info(layer.digest)).labels
    if UNCOMPRESSED not in labels:
        raise FailedPrecondition(f"the daemon does not tell the diff id of layer {layer.digest}")
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    process = dict(config.get("config") or {})
    for change in changes:
        changed(process, change)
    diff_ids = [*config.get("rootfs", {}).get("diff_ids", []), labels[UNCOMPRESSED]]
    config |= {"created": now, "config": process, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    if history["author"]:
        config["author"] = history["author"]
    entry = {key: value for key, value in history.items() if value} | {"created": now}
    config["history"] = [*(config.get("history") or []), entry]
    layers = [{"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in manifest.layers] + [
        {"mediaType": _kind(manifest.media_type), "digest": layer.digest, "size": layer.size}
    ]
    stored = await _stored(leased, config, manifest.config.media_type or media.OCI_CONFIG, {})
    kind = manifest.media_type or media.OCI_MANIFEST
    document = {"schemaVersion": 2, "mediaType": kind, "config": stored, "layers": layers}
    references = {f"{REFERENCE}.config": stored["digest"]}
    references |= {f"{REFERENCE}.l.{number}": one["digest"] for number, one in enumerate(layers)}
    top = await _stored(leased, document, kind, references)
    target = Descriptor(media_type=kind, digest=top["digest"], size=top["size"])
    image = await leased.images.put(Image(name=reference, target=target))
    await leased.unpack(image, snapshotter=container.record.snapshotter)
    return image


def _kind(manifest: str) -> str:
    from moored.api.cli.changes import GZIP
    from moored.kernel.imagespec import media

    return media.DOCKER_LAYER_GZIP if manifest == media.DOCKER_MANIFEST else GZIP


async def _stored(leased: Client, document: Mapping[str, Any], kind: str, labels: Mapping[str, str]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    await leased.content.write(f"moorctl-commit-{digest}", data, total=len(data), expected=digest, labels=labels)
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def changed(process: dict[str, Any], instruction: str) -> None:
    """Change an image's config as one instruction of a Dockerfile says. Raises InvalidArgument."""
    word, _, rest = instruction.strip().partition(" ")
    rest = rest.strip()
    match word.upper():
        case _ if not rest:
            raise InvalidArgument(
                f'change {instruction!r} must be an instruction and its arguments, such as CMD ["sh"]'
            )
        case "CMD":
            process["Cmd"] = _words(rest)
        case "ENTRYPOINT":
            process["Entrypoint"] = _words(rest)
        case "ENV":
            given = _pairs(instruction, rest)
            kept = [one for one in process.get("Env") or [] if one.partition("=")[0] not in given]
            process["Env"] = kept + [f"{key}={value}" for key, value in given.items()]
        case "LABEL":
            process["Labels"] = (process.get("Labels") or {}) | _pairs(instruction, rest)
        case "EXPOSE":
            ports: dict[str, Any] = {port if "/" in port else f"{port}/tcp": {} for port in rest.split()}
            process["ExposedPorts"] = (process.get("ExposedPorts") or {}) | ports
        case "VOLUME":
            process["Volumes"] = (process.get("Volumes") or {}) | {place: {} for place in _list(rest) or rest.split()}
        case "USER":
            process["User"] = rest
        case "WORKDIR":
            process["WorkingDir"] = rest
        case "STOPSIGNAL":
            process["StopSignal"] = rest
        case _:
            raise InvalidArgument(
                f"change {instruction!r} has instruction {word!r}, which an image's config has no place for"
            )


def _words(text: str) -> list[str]:
    return _list(text) or ["/bin/sh", "-c", text]


def _list(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def _pairs(instruction: str, text: str) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"change {instruction!r} cannot be read: {error}") from error
    if len(words) >= 2 and "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    if not words or not all("=" in word for word in words):
        raise InvalidArgument(f"change {instruction!r} must have KEY=VALUE")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}
