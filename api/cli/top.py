"""`moorctl top`: the processes of a container, as the host sees them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moored.api.cli import output
from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Seen:
    """One process: pid and parent on the host, pid in the container, user, state, seconds, bytes, words."""

    pid: int
    parent: int
    inner: int
    uid: int
    state: str
    seconds: float
    age: float
    memory: int
    command: str


@click.command(
    "top",
    epilog="""\b
JSON: {"processes": [{"pid", "ppid", "container_pid", "uid", "state",
  "cpu_seconds", "age_seconds", "rss", "command"}]}
pid, ppid: on the host

\b
Examples:
  moorctl top web""",
)
@click.argument("name", metavar="CONTAINER", shell_complete=containers)
@global_options
@pass_settings
def top(settings: Settings, name: str) -> None:
    """List the processes of a container that runs."""
    from moored.api.cli.session import run

    async def body(client: Client) -> list[int]:
        from moored.api.cli import identity
        from moored.api.cli.exec import running_task

        container = await identity.find(client, name)
        task = await running_task(container, name)
        return [process.pid for process in await task.pids()]

    found = [seen for pid in sorted(run(settings, body)) if (seen := look(pid)) is not None]
    if settings.json:
        output.write_json({"processes": [_document(one) for one in found]})
    else:
        _show(found)


def look(pid: int) -> Seen | None:
    """Read what the kernel says of a process; None if it has ended, or is another host's."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        status = (PROC / str(pid) / "status").read_text()
        words = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses itself.
    name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    ticks = os.sysconf("SC_CLK_TCK")
    started = int(fields[19]) / ticks
    return Seen(
        pid=pid,
        parent=int(fields[1]),
        inner=int(facts.get("NSpid", str(pid)).split()[-1]),
        uid=int(facts["Uid"].split()[0]),
        state=fields[0],
        seconds=(int(fields[11]) + int(fields[12])) / ticks,
        age=max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0),
        memory=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        command=words.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace") or f"[{name}]",
    )


def _document(one: Seen) -> dict[str, object]:
    return {
        "pid": one.pid,
        "ppid": one.parent,
        "container_pid": one.inner,
        "uid": one.uid,
        "state": one.state,
        "cpu_seconds": round(one.seconds, 2),
        "age_seconds": round(one.age, 1),
        "rss": one.memory,
        "command": one.command,
    }


def _show(found: Sequence[Seen]) -> None:
    from moored.api.cli.quantities import size
    from moored.api.cli.tables import Column, table, terminal_width

    columns = [
        Column("UID", right=True),
        Column("PID", right=True),
        Column("PPID", right=True, rank=1),
        Column("CPID", right=True, rank=2),
        Column("S", rank=4),
        Column("AGE", right=True, rank=3),
        Column("TIME", right=True),
        Column("RSS", right=True, rank=1),
        Column("CMD", least=10),
    ]
    rows = [
        [
            str(one.uid),
            str(one.pid),
            str(one.parent),
            str(one.inner),
            one.state,
            _clock(one.age),
            _clock(one.seconds),
            size(one.memory),
            one.command,
        ]
        for one in found
    ]
    output.write(table(columns, rows, terminal_width()))


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
