"""`moorctl config`: the configuration in force, and how the files on disk compare with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import click

from moored.api.cli import output, records
from moored.api.cli.settings import Settings, global_options, pass_settings


@click.group(
    "config",
    epilog="""\b
Examples:
  moorctl config dump --origin
  moorctl config check && systemctl reload moored""",
)
@global_options
def config() -> None:
    """Show the running daemon's configuration; changes nothing."""


@config.command(
    "dump",
    epilog="""\b
JSON: {"files": [PATH], "drifted", "drift": [LINE],
  "values": [{"key", "value", "origin"}], "toml"}

\b
Examples:
  moorctl config dump > config.toml
  moorctl config dump --origin | grep snapshotter""",
)
@click.option("--origin", is_flag=True, help="One value a line, with the file and line it came from.")
@global_options
@pass_settings
def dump(settings: Settings, origin: bool) -> None:
    """Print the whole configuration that the daemon runs with, as TOML."""
    found = _effective(settings)

    if settings.json:
        output.write_json(
            {
                "files": list(found.files),
                "drifted": found.drifted,
                "drift": list(found.drift),
                "values": [{"key": v.key, "value": v.value, "origin": v.origin} for v in found.values],
                "toml": found.toml,
            }
        )
        return
    output.write(origins(found.values) if origin else found.toml.rstrip("\n") + "\n")
    if found.drifted:
        click.echo("files changed since the daemon read them, see moorctl config drift", err=True)


@config.command(
    "check",
    epilog="""\b
JSON: {"ok", "problems": [{"level", "key", "message", "file", "line"}],
  "changes": [{"plugin", "action", "keys": [KEY]}]}

\b
Examples:
  moorctl config check
  moorctl --json config check | jq '.changes[].plugin'""",
)
@global_options
@pass_settings
@click.pass_context
def check(ctx: click.Context, settings: Settings) -> None:
    """Tell what the files on disk would change, without applying them.

    Exits with 1 if they hold an error.
    """
    from moored.api.cli.connection import connect

    with connect(settings) as daemon:
        found = daemon.check()

    if settings.json:
        output.write_json(
            {
                "ok": found.ok,
                "problems": [
                    {"level": p.level, "key": p.key, "message": p.message, "file": p.file, "line": p.line}
                    for p in found.problems
                ],
                "changes": [{"plugin": c.plugin, "action": c.action, "keys": list(c.keys)} for c in found.changes],
            }
        )
    else:
        output.write(checked(found))
        click.echo(verdict(found), err=True)
    if not found.ok:
        ctx.exit(1)


@config.command(
    "drift",
    epilog="""\b
JSON: {"drifted", "drift": [LINE], "files": [PATH]}

\b
Examples:
  moorctl config drift""",
)
@global_options
@pass_settings
def drift(settings: Settings) -> None:
    """Tell which files changed since the daemon read them."""
    found = _effective(settings)

    if settings.json:
        output.write_json({"drifted": found.drifted, "drift": list(found.drift), "files": list(found.files)})
        return
    output.write("".join(f"{output.printable(row)}\n" for row in found.drift))
    if not found.drifted:
        click.echo(f"no drift, {_number(len(found.files), 'file')} as read", err=True)
    else:
        click.echo("see moorctl config check for what they would change", err=True)


def _effective(settings: Settings) -> records.Effective:
    from moored.api.cli.connection import connect

    with connect(settings) as daemon:
        return daemon.config()


def origins(values: Iterable[records.Value]) -> str:
    """One value a line, itself valid TOML, with its origin as a comment; a key without a value is a comment whole."""
    rows = [(f"{'# ' if value.value is None else ''}{value.key} = {toml(value.value)}", value) for value in values]
    column = min(max((len(text) for text, _ in rows), default=0), 60)
    return "".join(f"{_one_line(text):<{column}}  # {_one_line(value.origin)}\n" for text, value in rows)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def toml(value: Any) -> str:
    """A JSON value as TOML writes it on one line; None, which TOML lacks, is `unset`."""
    match value:
        case None:
            return "unset"
        case str():
            # JSON leaves the delete character alone, TOML does not allow it bare.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(toml(item) for item in value)}]"
        case dict():
            pairs = ", ".join(f"{_key(key)} = {toml(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case _:
            return json.dumps(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def checked(check: records.Check) -> str:
    """Problems, then changes, one a line: `error: FILE:LINE: KEY: MESSAGE` and `restarted PLUGIN (KEY, KEY)`.

    A change without a plugin concerns the daemon itself.
    """
    from moored.api.cli.output import printable

    lines: list[str] = []
    for problem in check.problems:
        place = f"{problem.file}:{problem.line}" if problem.file and problem.line else problem.file
        lines.append(": ".join(filter(None, (problem.level, place, problem.key, _one_line(problem.message)))))
    for change in check.changes:
        keys = f" ({', '.join(change.keys)})" if change.keys else ""
        lines.append((f"{change.action:<12} {change.plugin}" if change.plugin else change.action) + keys)
    return "".join(f"{printable(text)}\n" for text in lines)


def verdict(check: records.Check) -> str:
    """The result of a check in one line."""
    counted = [
        _number(sum(problem.level == level for problem in check.problems), level) for level in ("error", "warning")
    ]
    concerned = [change for change in check.changes if change.action != "kept"]
    itself = "" if all(change.plugin for change in concerned) else ", so would the daemon itself"
    return f"{', '.join(counted)}; {_number(sum(bool(c.plugin) for c in concerned), 'plugin')} would change{itself}"


def _number(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
