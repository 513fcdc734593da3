"""`moorctl events`: what happens in the daemon, as it happens."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.events import Event


@click.command(
    "events",
    epilog="""\b
JSON, one object a line: {"time", "namespace", "topic", "type", "event": {..}}
event: the fields of the message, null for a type that moorctl does not know

\b
Examples:
  moorctl events
  moorctl events -f 'topic=="/tasks/exit"'
  moorctl --json events --all-namespaces | jq -c .topic""",
)
@click.option("--filter", "-f", "filters", multiple=True, metavar="FILTER", help='Such as topic~="^/tasks/".')
@click.option("--all-namespaces", is_flag=True, help="Of all namespaces.")
@click.option("--count", type=click.IntRange(1), metavar="NUMBER", help="End after so many.")
@click.option("--for", "seconds", default="", metavar="TIME", help="End after this time.")
@global_options
@pass_settings
def events(
    settings: Settings, *, filters: tuple[str, ...], all_namespaces: bool, count: int | None, seconds: str
) -> None:
    """Watch what happens, from now on. Ctrl-C ends it."""
    from moored.api.cli.quantities import parse_duration
    from moored.api.cli.session import run
    from moored.kernel.errors import InvalidArgument

    try:
        limit = parse_duration(seconds) if seconds else None
    except ValueError as error:
        raise InvalidArgument(f"--for: {error}") from error
    wanted = filters if all_namespaces else _within(settings.namespace, filters)

    async def body(client: Client) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit), client.events.subscribe(*wanted) as found:
                left = count
                async for event in found:
                    _show(settings, event)
                    left = left - 1 if left else None
                    if left == 0:
                        return

    run(settings, body)


def _within(namespace: str, filters: tuple[str, ...]) -> list[str]:
    """Filters of which each is for one namespace; commas within one mean that all parts must match."""
    own = f"namespace=={namespace}"
    return [f"{own},{one}" for one in filters] or [own]


def _show(settings: Settings, event: Event) -> None:
    from moored.api.cli.quantities import timestamp

    fields = plain(event.payload) if event.payload is not None else None
    if settings.json:
        output.write_json_line(
            {
                "time": timestamp(event.timestamp),
                "namespace": event.namespace,
                "topic": event.topic,
                "type": event.packed.type_url,
                "event": fields,
            }
        )
        return
    shown = " ".join(
        f"{name}={_short(value)}" for name, value in (fields or {}).items() if value not in ("", None, {}, [])
    )
    text = f"{timestamp(event.timestamp)} {event.namespace} {event.topic} {shown}".rstrip()
    output.write(f"{output.printable(text)}\n")


def _short(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def plain(value: Any) -> Any:
    """Give a payload as JSON objects; bytes are told by their length."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
