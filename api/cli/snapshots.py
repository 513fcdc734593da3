"""`moorctl snapshot`: the file systems that a snapshotter keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.snapshots import Snapshots
    from moored.kernel.ports.snapshots import Info, Usage

AT_ONCE = 8


@click.group(
    "snapshot",
    epilog="""\b
Examples:
  moorctl snapshot ls
  moorctl snapshot tree --snapshotter native""",
)
@global_options
def snapshot() -> None:
    """Look into a snapshotter."""


def _snapshotter(command: Any) -> Any:
    return click.option("--snapshotter", default="", metavar="NAME", help="In place of the namespace's default.")(
        command
    )


async def _of(client: Client, name: str) -> Snapshots:
    return client.snapshots(name or await client.default_snapshotter())


def _walked(settings: Settings, snapshotter: str, *, used: bool) -> list[tuple[Info, Usage | None]]:
    from moored.api.cli.session import run
    from moored.kernel.errors import MooredError

    async def body(client: Client) -> list[tuple[Info, Usage | None]]:
        snapshots = await _of(client, snapshotter)
        found = [info async for info in snapshots.walk()]
        slots = asyncio.Semaphore(AT_ONCE)

        async def usage(info: Info) -> Usage | None:
            async with slots:
                try:
                    return await snapshots.usage(info.name)
                except MooredError:  # gone since it was listed
                    return None

        return (
            list(zip(found, await asyncio.gather(*map(usage, found)), strict=True))
            if used
            else [(i, None) for i in found]
        )

    return run(settings, body)


@snapshot.command(
    "ls",
    epilog="""\b
JSON: {"snapshots": [{"name", "kind", "parent", "created", "updated",
  "labels", "size", "inodes"}]}
size, inodes: with --usage, else null

\b
Examples:
  moorctl snapshot ls --usage""",
)
@click.option("--quiet", "-q", is_flag=True, help="Only names.")
@click.option("--usage", is_flag=True, help="What each takes by itself.")
@_snapshotter
@global_options
@pass_settings
def ls(settings: Settings, snapshotter: str, quiet: bool, usage: bool) -> None:
    """List snapshots."""
    from moored.api.cli.quantities import size
    from moored.api.cli.tables import Column, table, terminal_width

    found = _walked(settings, snapshotter, used=usage)
    if settings.json:
        output.write_json({"snapshots": [document(info, used) for info, used in found]})
        return
    if quiet:
        output.write("".join(f"{info.name}\n" for info, _ in found))
        return
    columns = [Column("NAME", least=19), Column("KIND"), Column("PARENT", least=19, rank=2)]
    rows = [[info.name, info.kind.name.lower(), info.parent or "-"] for info, _ in found]
    if usage:
        columns.append(Column("SIZE", right=True, rank=1))
        rows = [[*row, size(used.size) if used else "-"] for row, (_, used) in zip(rows, found, strict=True)]
    output.write(table(columns, rows, terminal_width()))


def document(info: Info, usage: Usage | None) -> dict[str, Any]:
    """Give a snapshot as --json has it."""
    from moored.api.cli.quantities import timestamp

    return {
        "name": info.name,
        "kind": info.kind.name.lower(),
        "parent": info.parent,
        "created": timestamp(info.created_at),
        "updated": timestamp(info.updated_at),
        "labels": dict(info.labels),
        "size": usage.size if usage else None,
        "inodes": usage.inodes if usage else None,
    }


@snapshot.command(
    "tree",
    epilog="""\b
Examples:
  moorctl snapshot tree""",
)
@_snapshotter
@global_options
@pass_settings
def tree(settings: Settings, snapshotter: str) -> None:
    """Draw which snapshot is above which."""
    found = [info for info, _ in _walked(settings, snapshotter, used=False)]
    if settings.json:
        output.write_json({"snapshots": [document(info, None) for info in found]})
        return
    output.write(drawn(found))


def drawn(found: Sequence[Info]) -> str:
    """Give the tree as lines, each snapshot indented below its parent."""
    below: dict[str, list[Info]] = {}
    names = {info.name for info in found}
    for info in found:
        below.setdefault(info.parent if info.parent in names else "", []).append(info)
    lines: list[str] = []
    stack = [(info, 0) for info in reversed(below.get("", []))]
    while stack:
        info, depth = stack.pop()
        lines.append(f"{'  ' * depth}{output.printable(info.name)}  {info.kind.name.lower()}\n")
        stack += [(child, depth + 1) for child in reversed(below.get(info.name, []))]
    return "".join(lines)


@snapshot.command(
    "mounts",
    epilog="""\b
JSON: {"mounts": [{"type", "source", "target", "options": [TEXT]}]}

\b
Examples:
  moorctl snapshot mounts $(moorctl ps -q --no-trunc)""",
)
@click.argument("key")
@_snapshotter
@global_options
@pass_settings
def mounts(settings: Settings, snapshotter: str, key: str) -> None:
    """Print the mounts that show an active snapshot or a view, one a line as mount(8) takes them."""
    from moored.api.cli.session import run

    async def body(client: Client) -> list[Any]:
        return list(await (await _of(client, snapshotter)).mounts(key))

    found = run(settings, body)
    if settings.json:
        rows = [{"type": m.type, "source": m.source, "target": m.target, "options": list(m.options)} for m in found]
        output.write_json({"mounts": rows})
        return
    for mount in found:
        output.write(
            output.printable(f"mount -t {mount.type} {mount.source} TARGET -o {','.join(mount.options)}") + "\n"
        )


@snapshot.command(
    "rm",
    epilog="""\b
JSON: {"snapshots": [{"name", "result", "error"}]}

\b
Examples:
  moorctl snapshot rm leftover""",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_snapshotter
@global_options
@pass_settings
def rm(settings: Settings, snapshotter: str, names: tuple[str, ...]) -> None:
    """Remove snapshots that no other is above."""
    from moored.api.cli.several import each

    async def action(client: Client, name: str) -> None:
        await (await _of(client, snapshotter)).remove(name)

    each(settings, names, action, key="snapshots")
