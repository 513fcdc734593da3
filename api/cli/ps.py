"""`moorctl ps`: the containers of a namespace."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options_without_a, pass_settings
from moored.kernel.errors import InvalidArgument

if TYPE_CHECKING:
    from moored.api.cli.identity import Recorded
    from moored.kernel.ports.tasks import ProcessState


@click.command(
    "ps",
    epilog="""\b
JSON: {"containers": [{"id", "name", "image", "command": [WORD], "created",
  "status", "pid", "exit_code", "exited", "ports": [{"HostIP", "HostPort",
  "ContainerPort", "Protocol"}], "labels", "runtime", "snapshotter"}]}
status: created, running, paused, exited, unknown; pid, exit_code: or null

\b
Examples:
  moorctl ps
  moorctl ps -a --filter status=exited
  moorctl ps -aq | xargs moorctl rm
  moorctl --json ps | jq -r '.containers[].name'""",
)
@click.option("--all", "-a", "everything", is_flag=True, help="Those that do not run as well.")
@click.option("--quiet", "-q", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Cut nothing.")
@click.option("--last", type=click.IntRange(1), metavar="NUMBER", help="The youngest ones, whether they run or not.")
@click.option(
    "--filter",
    "-f",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="status=WORD, name=PART, label=KEY[=VALUE], ancestor=IMAGE or id=BEGINNING.",
)
@global_options_without_a
@pass_settings
def ps(
    settings: Settings, *, everything: bool, quiet: bool, no_trunc: bool, last: int | None, filters: tuple[str, ...]
) -> None:
    """List the containers that run; with -a all of them, the youngest first."""
    wanted = [_filter(text) for text in filters]
    from moored.api.cli import listing
    from moored.api.cli.states import gone, is_up

    found, tasks = listing.ask(settings)
    known = gone(found) | tasks
    found.sort(key=lambda one: one.record.created_at, reverse=True)
    by_status = any(key == "status" for key, _ in wanted)
    if not (everything or last or by_status):
        found = [one for one in found if is_up(known.get(one.id))]
    found = [one for one in found if all(_fits(one, known.get(one.id), key, value) for key, value in wanted)]
    _show(settings, found[:last], known, quiet=quiet, full=no_trunc)


def _filter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key not in ("status", "name", "label", "ancestor", "id") or not equals:
        raise InvalidArgument(f"filter {text!r} must be status=, name=, label=, ancestor= or id= and a value")
    return key, value


def _fits(container: Recorded, state: ProcessState | None, key: str, value: str) -> bool:
    from moored.api.cli.identity import name_of
    from moored.api.cli.states import word

    match key:
        case "status":
            return word(state) == value
        case "name":
            return value in name_of(container)
        case "id":
            return container.id.startswith(value)
        case "ancestor":
            from moored.kernel.imagespec.references import familiar

            return container.record.image in (value, f"{value}:latest") or familiar(container.record.image) in (
                value,
                f"{value}:latest",
            )
        case _:
            label, equals, wanted = value.partition("=")
            labels = container.record.labels
            return label in labels and (not equals or labels[label] == wanted)


def _show(
    settings: Settings,
    found: Sequence[Recorded],
    known: Mapping[str, ProcessState],
    *,
    quiet: bool,
    full: bool,
) -> None:
    if settings.json:
        output.write_json({"containers": [document(one, known.get(one.id)) for one in found]})
        return
    from moored.api.cli.identity import short

    if quiet:
        output.write("".join(f"{one.id if full else short(one.id)}\n" for one in found))
        return
    from moored.api.cli.tables import Column, table, terminal_width

    columns = [
        Column("CONTAINER ID", rank=1),
        Column("IMAGE", least=12, rank=2),
        Column("COMMAND", least=10, rank=5),
        Column("CREATED", rank=4),
        Column("STATUS", least=10),
        Column("PORTS", least=8, rank=3),
        Column("NAMES", least=8),
    ]
    now = time.time_ns()
    rows = [_row(one, known.get(one.id), now, full=full) for one in found]
    output.write(table(columns, rows, None if full else terminal_width()))


def _row(container: Recorded, state: ProcessState | None, now: int, *, full: bool) -> list[str]:
    from moored.api.cli.identity import name_of, short
    from moored.api.cli.network.ports import read, shown
    from moored.api.cli.quantities import ago
    from moored.api.cli.states import is_up
    from moored.kernel.imagespec.references import familiar

    command = " ".join(words(container))
    record = container.record
    return [
        container.id if full else short(container.id),
        familiar(record.image),
        f'"{command if full or len(command) <= 20 else command[:19] + "…"}"',
        ago(record.created_at, now),
        status_text(state, now),
        shown(read(record.labels)) if is_up(state) else "",
        name_of(container),
    ]


def status_text(state: ProcessState | None, now: int) -> str:
    """Give a state for people: `Up`, `Exited (1) 3 hours ago`."""
    from moored.api.cli.quantities import ago
    from moored.api.cli.states import word

    match word(state):
        case "running":
            return "Up"
        case "paused":
            return "Up (paused)"
        case "exited" if state is not None:
            when = f" {ago(state.exited_at, now)}" if state.exited_at else ""
            return f"Exited ({state.exit_status}){when}"
        case other:
            return other.capitalize()


def words(container: Recorded) -> list[str]:
    """Give the command of a container; empty where its spec cannot be read."""
    import json

    spec = container.record.spec
    try:
        args = json.loads(spec.value)["process"]["args"] if spec is not None else []
        return [str(arg) for arg in args]
    except (ValueError, KeyError, TypeError):
        return []


def document(container: Recorded, state: ProcessState | None) -> dict[str, Any]:
    """Give a container as --json has it."""
    from moored.api.cli.identity import name_of
    from moored.api.cli.network.ports import read
    from moored.api.cli.quantities import timestamp
    from moored.api.cli.states import is_up, word

    record = container.record
    over = state is not None and state.exited_at is not None
    return {
        "id": container.id,
        "name": name_of(container),
        "image": record.image,
        "command": words(container),
        "created": timestamp(record.created_at),
        "status": word(state),
        "pid": state.pid if state is not None and is_up(state) else None,
        "exit_code": state.exit_status if state is not None and over else None,
        "exited": timestamp(state.exited_at) if state is not None and over else None,
        "ports": [port.document() for port in read(record.labels)],
        "labels": dict(record.labels),
        "runtime": record.runtime,
        "snapshotter": record.snapshotter,
    }
