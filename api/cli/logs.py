"""`moorctl logs`: what a detached container has written, and what it writes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from moored.api.cli.completing import containers
from moored.api.cli.settings import Settings, long_global_options, pass_settings
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound

if TYPE_CHECKING:
    from moored.api.cli.identity import Notes
    from moored.api.cli.logfiles import Entry
    from moored.api.client import Client
    from moored.api.client.containers import Container

FOREVER: Final = 1 << 63


@click.command(
    "logs",
    epilog="""\b
JSON, one object a line: {"stream", "time", "text"}

\b
Examples:
  moorctl logs --tail 100 -f web
  moorctl logs -t --since 10m web
  moorctl --json logs web | jq -r 'select(.stream == "stderr").text'""",
)
@click.argument("name", metavar="CONTAINER", shell_complete=containers)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is added, until the container ends.")
@click.option("--since", default="", metavar="TIME", help="Nothing before: 10m, or 2026-01-31T12:00:00Z.")
@click.option("--until", default="", metavar="TIME", help="Nothing after.")
@click.option("--tail", "-n", default="all", metavar="NUMBER", help="Only so many of the last lines.")
@click.option("--timestamps", "-t", is_flag=True, help="The time in front of each line.")
@long_global_options
@pass_settings
def logs(settings: Settings, *, name: str, follow: bool, since: str, until: str, tail: str, timestamps: bool) -> None:
    """Show what a detached container has written; its errors go to standard error."""
    from moored.api.cli.session import run

    bounds = _moment(since, 0, "--since"), _moment(until, FOREVER, "--until")
    lines = _lines(tail)

    async def body(client: Client) -> None:
        from moored.api.cli import identity

        container = await identity.find(client, name)
        notes = identity.notes(container.record.labels)
        _see_kept(container, notes, name)
        timed = bool(since or until or timestamps or settings.json)
        if timed and notes.log_format == "plain":
            raise FailedPrecondition(
                f"the log of {name!r} is plain and has no times, leave out -t, --since and --until"
            )
        printer = Printer(timestamps=timestamps, json=settings.json, bounds=bounds)
        await _print(container, notes, lines, printer, follow=follow)

    run(settings, body)


def _moment(text: str, default: int, option: str) -> int:
    from moored.api.cli.quantities import parse_moment

    if not text:
        return default
    try:
        return parse_moment(text, time.time())
    except ValueError as error:
        raise InvalidArgument(f"{option}: {error}") from error


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise InvalidArgument(f"--tail {text!r} must be a number of lines or 'all'")
    return int(text)


def _see_kept(container: Container, notes: Notes, name: str) -> None:
    from moored.api.cli import identity

    if not identity.is_ours(container.record.labels):
        raise FailedPrecondition(f"container {name!r} was made by another client, which alone knows its log")
    from moored.api.cli.logfiles import files

    if not notes.log or not files(Path(notes.log)):
        raise NotFound(
            f"container {name!r} has no log: it ran attached, or with --log-driver none; run it with -d to have one"
        )


async def _print(container: Container, notes: Notes, lines: int | None, printer: Printer, *, follow: bool) -> None:
    from moored.api.cli.logfiles import Reader, followed

    reader = Reader(Path(notes.log), notes.log_format, lines)
    try:
        for entry in reader.entries():
            printer.show(entry)
        if not follow:
            return
        ended = asyncio.Event()
        watching = asyncio.create_task(_until_ended(container, ended))
        try:
            async for entry in followed(reader, ended):
                printer.show(entry)
                if printer.over:
                    return
        finally:
            watching.cancel()
    finally:
        reader.close()


async def _until_ended(container: Container, ended: asyncio.Event) -> None:
    try:
        await (await container.task()).wait()
    except NotFound:
        pass
    finally:
        ended.set()


class Printer:
    """Writes entries to standard output and standard error, each line once with its time in front."""

    def __init__(self, *, timestamps: bool, json: bool, bounds: tuple[int, int]) -> None:
        self._timestamps = timestamps
        self._json = json
        self._since, self._until = bounds
        self._in_line = {False: False, True: False}
        self.over = False

    def show(self, entry: Entry) -> None:
        """Write one, if it is of the time that is wanted."""
        from moored.api.cli.joining import write_all

        if entry.moment and entry.moment > self._until:
            self.over = True
            return
        if entry.moment and entry.moment < self._since:
            return
        if self._json:
            self._as_json(entry)
            return
        data = entry.data
        if self._timestamps and not self._in_line[entry.is_error]:
            from moored.api.cli.quantities import timestamp

            data = f"{timestamp(entry.moment)} ".encode() + data
        self._in_line[entry.is_error] = not entry.data.endswith(b"\n")
        write_all(2 if entry.is_error else 1, data)

    def _as_json(self, entry: Entry) -> None:
        from moored.api.cli import output
        from moored.api.cli.quantities import timestamp

        output.write_json_line(
            {
                "stream": "stderr" if entry.is_error else "stdout",
                "time": timestamp(entry.moment),
                "text": entry.data.decode(errors="replace"),
            }
        )
