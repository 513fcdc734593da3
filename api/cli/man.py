"""`moorctl man`: manual pages, and the reference in Markdown, made of the commands themselves."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from moored.api.cli import output
from moored.api.cli.settings import global_options

SECTION: Final = 1
SHARED: Final = frozenset({"address", "namespace", "timeout", "json", "no_color", "help"})
"""Options that every command has, told once."""


@click.command(
    "man",
    epilog="""\b
Examples:
  moorctl man --folder /usr/share/man/man1
  moorctl man run | man -l -
  moorctl man --markdown > docs/moorctl.md""",
)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.option("--folder", metavar="FOLDER", help="Write a page for each command here.")
@click.option("--compress", is_flag=True, help="Gzip the pages in the folder.")
@click.option("--markdown", is_flag=True, help="Print the whole reference as Markdown.")
@global_options
def man(words: tuple[str, ...], folder: str | None, compress: bool, markdown: bool) -> None:
    """Print the manual page of moorctl or one of its commands, or write them all."""
    from moored.kernel.errors import NotFound

    if markdown:
        output.write(reference())
        return
    if folder is not None:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for path, command, ctx in commands():
            data = page(path, command, ctx).encode()
            name = f"{'-'.join(path)}.{SECTION}{'.gz' if compress else ''}"
            (place / name).write_bytes(_gzipped(data) if compress else data)
        return
    wanted = ("moorctl", *words)
    for path, command, ctx in commands():
        if path == wanted:
            output.write(page(path, command, ctx))
            return
    raise NotFound(f"there is no command {' '.join(wanted)!r}, see moorctl --help")


def _gzipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
        file.write(data)
    return out.getvalue()


def commands() -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    """Give every command with its path and context, moorctl itself first."""
    from moored.api.cli.main import root

    yield from _below(("moorctl",), root, None)


def _below(
    path: tuple[str, ...], command: click.Command, parent: click.Context | None
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    ctx = click.Context(command, info_name=path[-1], parent=parent, **command.context_settings)
    yield path, command, ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            if found is not None and not found.hidden:
                yield from _below((*path, name), found, ctx)


# --- roff -------------------------------------------------------------------------------------------------------------


def page(path: tuple[str, ...], command: click.Command, ctx: click.Context) -> str:
    """Give a manual page."""
    name = "-".join(path)
    text = [f'.TH "{name.upper()}" "{SECTION}" "" "moored" "User Commands"', ".SH NAME"]
    text.append(f"{_roff(name)} \\- {_roff(command.get_short_help_str(200))}")
    usage = " ".join(command.collect_usage_pieces(ctx))
    text += [".SH SYNOPSIS", f"\\fB{_roff(' '.join(path))}\\fR {_roff(usage)}", ".SH DESCRIPTION"]
    text += [line for paragraph in paragraphs(command.help or "") for line in (".PP", _roff(paragraph))]
    rows = [row for row in options(command, ctx) if path == ("moorctl",) or not row[2]]
    if rows:
        text.append(".SH OPTIONS")
        text += [line for flags, about, _ in rows for line in (".TP", f"\\fB{_roff(flags)}\\fR", _roff(about))]
    if isinstance(command, click.Group):
        text.append(".SH COMMANDS")
        for sub in command.list_commands(ctx):
            found = command.get_command(ctx, sub)
            if found is not None and not found.hidden:
                text += [".TP", f"\\fB{_roff(sub)}\\fR", _roff(found.get_short_help_str(200))]
    for title, lines in blocks(command.epilog or ""):
        text += [f".SH {title.upper()}", ".nf", *(_roff(line) for line in lines), ".fi"]
    if path != ("moorctl",):
        text += [".SH SEE ALSO", "\\fBmoorctl\\fR(1), whose options every command takes as well"]
    return "\n".join(text) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", escaped)


def paragraphs(text: str) -> list[str]:
    """Give the paragraphs of a help text, each on one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def options(command: click.Command, ctx: click.Context) -> list[tuple[str, str, bool]]:
    """Give (flags, help, whether every command has it) of each option."""
    found = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            found.append((record[0], " ".join(record[1].split()), str(param.name) in SHARED))
    return found


def blocks(epilog: str) -> list[tuple[str, list[str]]]:
    """Give the headings of an epilog with their lines: JSON and Examples."""
    found: list[tuple[str, list[str]]] = []
    for part in epilog.split("\b"):
        lines = [line for line in part.strip("\n").splitlines() if line.strip()]
        if not lines:
            continue
        title, _, rest = lines[0].partition(":")
        first = [rest.strip()] if rest.strip() else []
        found.append((title, [*first, *(line.removeprefix("  ") for line in lines[1:])]))
    return found


# --- Markdown ---------------------------------------------------------------------------------------------------------


def reference() -> str:
    """Give the reference of all commands."""
    parts = [
        "# moorctl\n",
        "Made by `moorctl man --markdown` of what `moorctl COMMAND --help` says.\n",
    ]
    for path, command, ctx in commands():
        title = " ".join(path)
        parts.append(f"{'#' * min(len(path) + 1, 4)} {title}\n")
        usage = " ".join(command.collect_usage_pieces(ctx))
        parts.append(f"```text\n{title} {usage}\n```\n")
        parts += [f"{_markdown(paragraph)}\n" for paragraph in paragraphs(command.help or "")]
        rows = [row for row in options(command, ctx) if len(path) == 1 or not row[2]]
        if rows:
            lines = [f"| `{flags.replace('|', chr(92) + '|')}` | {_markdown(about)} |" for flags, about, _ in rows]
            parts.append("\n".join(["| option | |", "| --- | --- |", *lines]) + "\n")
        for name, lines in blocks(command.epilog or ""):
            body = "\n".join(lines)
            parts.append(f"{name}:\n\n```text\n{body}\n```\n")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return re.sub(r"([|<>*_])", r"\\\1", text)
