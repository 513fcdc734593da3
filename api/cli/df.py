"""`moorctl df`: what takes how much disk, and how much of it could go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.cli.home import Home
    from moored.api.client import Client

AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind: how many there are, how many of them are in use, bytes of all, bytes that `prune` would free."""

    kind: str
    count: int
    active: int
    size: int
    reclaimable: int

    def document(self) -> dict[str, Any]:
        """Give it as --json has it."""
        return {
            "kind": self.kind,
            "count": self.count,
            "active": self.active,
            "size": self.size,
            "reclaimable": self.reclaimable,
        }


@click.command(
    "df",
    epilog="""\b
JSON: {"disk": [{"kind", "count", "active", "size", "reclaimable"}],
  "images": [{"name", "size", "used"}]}
kind: content, snapshots, containers, volumes, logs; bytes; images: with -v

\b
Examples:
  moorctl df
  moorctl -n k8s.io df -v""",
)
@click.option("--verbose", "-v", is_flag=True, help="Each image too.")
@global_options
@pass_settings
def df(settings: Settings, verbose: bool) -> None:
    """Tell what the namespace takes on disk, by kind, and what of it nothing that runs needs."""
    from moored.api.cli.home import home
    from moored.api.cli.quantities import size
    from moored.api.cli.session import run
    from moored.api.cli.tables import Column, table, terminal_width

    place = home(settings.address, settings.namespace)

    async def body(client: Client) -> tuple[list[Line], list[tuple[str, int, bool]]]:
        return await _measured(client, place)

    lines, images = run(settings, body)
    if settings.json:
        listed = [{"name": name, "size": count, "used": used} for name, count, used in images] if verbose else None
        output.write_json({"disk": [line.document() for line in lines], "images": listed})
        return
    columns = [
        Column("KIND"),
        Column("COUNT", right=True),
        Column("ACTIVE", right=True, rank=1),
        Column("SIZE", right=True),
        Column("RECLAIMABLE", right=True),
    ]
    rows = [[line.kind, str(line.count), str(line.active), size(line.size), size(line.reclaimable)] for line in lines]
    output.write(table(columns, rows, terminal_width()))
    if verbose:
        rows = [[name, size(count), "yes" if used else "no"] for name, count, used in images]
        output.write(
            "\n"
            + table([Column("IMAGE", least=16), Column("SIZE", right=True), Column("USED")], rows, terminal_width())
        )


async def _measured(client: Client, place: Home) -> tuple[list[Line], list[tuple[str, int, bool]]]:
    from moored.api.cli.states import is_up, states

    containers = await client.containers.list()
    known = await states(client)
    up = [one for one in containers if is_up(known.get(one.id))]
    used = {one.record.image for one in containers}
    images = []
    needed: set[str] = set()
    for image in await client.images.list():
        found = await client.images.check(image)
        images.append((image.name, found.size, image.name in used))
        if image.name in used:
            needed |= {one.digest for one in found.present}
    blobs = {str(info.digest): info.size async for info in client.content.walk()}
    keys = {one.record.snapshot_key for one in containers}
    running = {one.record.snapshot_key for one in up}
    snapshots = await _snapshots(client)
    layers = {name: count for name, count in snapshots.items() if name not in keys}
    tops = {name: count for name, count in snapshots.items() if name in keys}
    idle = sum(count for name, count in tops.items() if name not in running)
    kept = sum(count for digest, count in blobs.items() if digest in needed)
    lines = [
        Line(
            kind="content",
            count=len(blobs),
            active=len(needed & set(blobs)),
            size=sum(blobs.values()),
            reclaimable=sum(blobs.values()) - kept,
        ),
        Line(kind="snapshots", count=len(layers), active=len(layers), size=sum(layers.values()), reclaimable=0),
        Line(kind="containers", count=len(containers), active=len(up), size=sum(tops.values()), reclaimable=idle),
        *await asyncio.to_thread(_own, place, containers, {one.id for one in up}),
    ]
    return lines, images


async def _snapshots(client: Client) -> dict[str, int]:
    """Bytes of every snapshot of every snapshotter that works."""
    from moored.kernel.errors import MooredError

    found: dict[str, int] = {}
    slots = asyncio.Semaphore(AT_ONCE)

    async def measure(name: str, key: str) -> None:
        async with slots:
            try:
                found[key] = found.get(key, 0) + (await client.snapshots(name).usage(key)).size
            except MooredError:  # gone since it was listed
                return

    for plugin in await client.server.plugins("type==io.containerd.snapshotter.v1"):
        if plugin.error:
            continue
        keys = [info.name async for info in client.snapshots(plugin.id).walk()]
        await asyncio.gather(*(measure(plugin.id, key) for key in keys))
    return found


def _own(place: Home, containers: Sequence[Any], up: set[str]) -> list[Line]:
    from moored.api.cli import volumes
    from moored.api.cli.identity import notes

    ids = {one.id for one in containers}
    logs = {id_: _logs(place.container(id_)) for id_ in place.known()}
    names = volumes.known(place)
    sizes = {name: tree_size(place.volumes / name) for name in names}
    used = mounted_volumes(place, containers) | {
        volume for one in containers for volume in notes(one.record.labels).volumes
    }
    return [
        Line(
            kind="volumes",
            count=len(names),
            active=len(used & set(names)),
            size=sum(sizes.values()),
            reclaimable=sum(count for name, count in sizes.items() if name not in used),
        ),
        Line(
            kind="logs",
            count=sum(1 for count in logs.values() if count),
            active=len(up & set(logs)),
            size=sum(logs.values()),
            reclaimable=sum(count for id_, count in logs.items() if id_ not in ids),
        ),
    ]


def mounted_volumes(place: Home, containers: Sequence[Any]) -> set[str]:
    """Names of the volumes that containers mount, by their specs."""
    import json

    found: set[str] = set()
    for container in containers:
        spec = container.record.spec
        try:
            mounts = json.loads(spec.value).get("mounts", []) if spec is not None else []
        except (ValueError, AttributeError):
            continue
        for mount in mounts:
            source = Path(str(mount.get("source", "")))
            if source.name == "_data" and source.parent.parent == place.volumes:
                found.add(source.parent.name)
    return found


def _logs(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("log.json*"))


def tree_size(folder: Path) -> int:
    """Bytes on disk of a folder with all below it."""
    import os

    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{where}/{name}").st_blocks * 512
            except OSError:
                continue
    return total
