"""`moorctl stats`: what containers use, again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from moored.api.cli import output
from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings

if TYPE_CHECKING:
    from moored.api.cli.counters import Use
    from moored.api.client import Client
    from moored.api.client.containers import Container

CLEAR: Final = "\x1b[H\x1b[J"
"""Cursor to the corner, and the rest of the screen empty."""


@click.command(
    "stats",
    epilog="""\b
JSON, one object a line for each look: {"time", "containers": [{"id", "name",
  "cpu_percent", "cpu_ns", "memory", "memory_limit", "pids", "read_bytes",
  "written_bytes", "received_bytes", "sent_bytes"}]}
memory_limit: 0 for none; network bytes: null without a network of its own

\b
Examples:
  moorctl stats
  moorctl stats --no-stream web
  moorctl --json stats --interval 5s | jq -c '.containers[].memory'""",
)
@click.argument("names", nargs=-1, metavar="[CONTAINER]...", shell_complete=containers)
@click.option("--no-stream", is_flag=True, help="Look once.")
@click.option("--interval", default="1s", show_default=True, metavar="TIME", help="Time between two looks.")
@click.option("--no-trunc", is_flag=True, help="Cut nothing.")
@global_options_without_a
@pass_settings
def stats(settings: Settings, *, names: tuple[str, ...], no_stream: bool, interval: str, no_trunc: bool) -> None:
    """Show what containers that run use: processors, memory, disk, network, processes.

    CPU is the share of one processor since the last look. Ctrl-C ends it.
    """
    from moored.api.cli.quantities import parse_duration
    from moored.api.cli.session import run
    from moored.kernel.errors import InvalidArgument

    try:
        pause = max(parse_duration(interval), 0.1)
    except ValueError as error:
        raise InvalidArgument(f"--interval: {error}") from error

    async def body(client: Client) -> None:
        before: dict[str, Use] = {}
        if no_stream:
            await _look(client, names, before)
            await asyncio.sleep(min(pause, 1.0))
        while True:
            _show(settings, await _look(client, names, before), live=not no_stream, full=no_trunc)
            if no_stream:
                return
            await asyncio.sleep(pause)

    run(settings, body)


async def _look(client: Client, names: Sequence[str], before: dict[str, Use]) -> list[dict[str, Any]]:
    from moored.api.cli import counters, identity
    from moored.api.cli.states import is_up, metrics, states

    wanted = [await identity.find(client, name) for name in names] if names else await client.containers.list()
    known = await states(client)
    up = [one for one in wanted if is_up(known.get(one.id))]
    found = await metrics(client, [one.id for one in up] if names else ()) if up else {}
    rows = []
    for container in up:
        if container.id not in found:
            continue
        now = counters.use(found[container.id])
        share = counters.percent(before.get(container.id), now)
        rows.append(_document(container, now, share, network(known[container.id].pid, container)))
        before[container.id] = now
    return rows


def network(pid: int, container: Container) -> tuple[int, int] | None:
    """Bytes received and sent by a container, None where its network is not its own, or another host's."""
    from moored.api.cli.identity import notes

    if notes(container.record.labels).network in ("host", "none"):
        return None
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None
    received = sent = 0
    for line in lines:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() != "lo" and len(fields) >= 9:
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent


def _document(container: Container, now: Use, share: float, traffic: tuple[int, int] | None) -> dict[str, Any]:
    from moored.api.cli.identity import name_of

    return {
        "id": container.id,
        "name": name_of(container),
        "cpu_percent": round(share, 2),
        "cpu_ns": now.cpu,
        "memory": now.memory,
        "memory_limit": now.limit,
        "pids": now.pids,
        "read_bytes": now.read,
        "written_bytes": now.written,
        "received_bytes": traffic[0] if traffic else None,
        "sent_bytes": traffic[1] if traffic else None,
    }


def _show(settings: Settings, rows: Sequence[Mapping[str, Any]], *, live: bool, full: bool) -> None:
    from moored.api.cli.quantities import timestamp

    if settings.json:
        document = {"time": timestamp(time.time_ns()), "containers": list(rows)}
        (output.write_json_line if live else output.write_json)(document)
        return
    from moored.api.cli.tables import Column, table, terminal_width

    columns = [
        Column("CONTAINER ID", rank=2),
        Column("NAME", least=8),
        Column("CPU %", right=True),
        Column("MEM USAGE / LIMIT", right=True),
        Column("MEM %", right=True, rank=3),
        Column("NET I/O", right=True, rank=4),
        Column("BLOCK I/O", right=True, rank=5),
        Column("PIDS", right=True, rank=1),
    ]
    width = None if full else terminal_width()
    text = table(columns, [_row(row, full=full) for row in rows], width)
    output.write((CLEAR if live and sys.stdout.isatty() else "") + text)


def _row(row: Mapping[str, Any], *, full: bool) -> list[str]:
    from moored.api.cli.identity import short
    from moored.api.cli.quantities import size

    limit = row["memory_limit"]
    traffic = "-" if row["received_bytes"] is None else f"{size(row['received_bytes'])} / {size(row['sent_bytes'])}"
    return [
        row["id"] if full else short(row["id"]),
        row["name"],
        f"{row['cpu_percent']:.2f}%",
        f"{size(row['memory'])} / {size(limit) if limit else '-'}",
        f"{row['memory'] / limit * 100:.1f}%" if limit else "-",
        traffic,
        f"{size(row['read_bytes'])} / {size(row['written_bytes'])}",
        str(row["pids"]),
    ]
