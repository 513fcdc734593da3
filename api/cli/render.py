"""The form of output: text fitted to the terminal or, anywhere else, one line a row in full."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from moored.api.cli.output import printable
from moored.api.cli.records import MISSING, Plugin
from moored.api.cli.settings import Settings

UNBOUNDED = 1 << 16
"""Columns of output that is not for a terminal."""

GUIDE = 4
"""Columns by which a tree indents each level."""

LABEL = 20
"""Columns that the deepest label of a tree has at least."""

STYLES = {
    "ok": "green",
    "skipped": "yellow",
    "disabled": "dim",
    "failed": "bold red",
    "blocked": "magenta",
    "timed-out": "bold red",
    "pending": "cyan",
    "stopped": "dim",
    MISSING: "bold red",
}


@dataclass(frozen=True, slots=True)
class Screen:
    """What can be shown: columns (None: as many as it takes), colours, and whether only ASCII comes through."""

    width: int | None = None
    colour: bool = False
    ascii: bool = False

    def text(self, *parts: RenderableType) -> str:
        """The parts below each other as lines, without blanks at their ends."""
        encoding = "ascii" if self.ascii else "utf-8"
        width = self.width or UNBOUNDED
        buffer = io.BytesIO()
        file = io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", newline="\n")
        console = Console(
            file=file,
            width=width,
            force_terminal=self.colour,
            color_system="standard" if self.colour else None,
            no_color=not self.colour,
            highlight=False,
            markup=False,
            emoji=False,
            force_jupyter=False,
        )
        for part in parts:
            # Rich leaves out what is indented beyond the edge; a terminal that breaks such lines shows all of them.
            console.width = max(width, GUIDE * _depth(part) + LABEL if isinstance(part, Tree) else 0)
            console.print(part, overflow="fold")
        file.flush()
        return "".join(f"{row.rstrip(' ')}\n" for row in buffer.getvalue().decode(encoding).split("\n")[:-1])


def _depth(tree: Tree) -> int:
    deepest = 0
    stack = [(tree, 0)]
    while stack:
        branch, depth = stack.pop()
        deepest = max(deepest, depth)
        stack += [(below, depth + 1) for below in branch.children]
    return deepest


def screen(stream: TextIO | None, *, no_color: bool) -> Screen:
    """What a stream can show. Width and colours are for terminals only; NO_COLOR, TERM=dumb and COLUMNS are heeded."""
    plain = (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8")
    if stream is None or not stream.isatty():
        return Screen(ascii=plain)
    mute = no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
    return Screen(width=max(shutil.get_terminal_size().columns, 20), colour=not mute, ascii=plain)


def output(settings: Settings) -> Screen:
    """What standard output can show."""
    return screen(sys.stdout, no_color=settings.no_color)


def line(text: str, style: str = "") -> Text:
    """Foreign text as one line: line ends become blanks, what terminals would obey is escaped."""
    return Text(printable(" ".join(text.splitlines())), style=style)


def status(word: str) -> Text:
    """A status in its colour."""
    return Text(word, style=STYLES.get(word, "bold"))


def duration(seconds: float | None) -> str:
    """A time for people: `<1ms`, `12ms`, `1.3s`, `75s`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 0.0005:
        return "<1ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, one pair a line; pairs with an empty value are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(name, value if isinstance(value, Text) else line(value))
    return grid


def listing(plugins: Sequence[Plugin], width: int | None) -> RenderableType:
    """Plugins as a table or, where it would not fit, each as a line that is broken between its parts."""
    table = _table(plugins)
    if width is None:
        return table
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    *fixed, reason = (max(map(cell_len, (str(table.columns[i].header), *cells))) for i, cells in enumerate(columns))
    if sum(fixed) + 2 * len(fixed) + min(reason, 30) <= width:
        return table
    stack = Table.grid()
    stack.add_column(overflow="fold")
    for plugin in plugins:
        stack.add_row(_stacked(plugin, width))
    return stack


def _table(plugins: Sequence[Plugin]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("TYPE", "ID", "STATUS", "TIME", "FROM"):
        table.add_column(name, no_wrap=True, justify="right" if name == "TIME" else "left")
    table.add_column("REASON", overflow="fold")
    for plugin in plugins:
        table.add_row(
            line(plugin.type),
            line(plugin.id),
            status(plugin.status),
            duration(plugin.seconds),
            line(plugin.source),
            line(plugin.reason),
        )
    return table


def _stacked(plugin: Plugin, width: int) -> RenderableType:
    rows = [Text.assemble(status(plugin.status), " " * (9 - len(plugin.status)))]
    took = "" if plugin.seconds is None else duration(plugin.seconds)
    for part in (line(plugin.uri), line(took, "dim"), line(plugin.source, "dim")):
        if not part:
            continue
        if cell_len(rows[-1].plain) + 2 + cell_len(part.plain) <= width:
            rows[-1].append("  ").append_text(part)
        else:
            rows.append(Text("  ").append_text(part))
    block = Table.grid()
    block.add_column(overflow="fold")
    for row in rows:
        # Only a part that is alone on its line can be too wide for it; its rest is indented like its beginning.
        block.add_row(Padding(row[2:], (0, 0, 0, 2)) if row.plain.startswith("  ") else row)
    if plugin.reason:
        block.add_row(Padding(line(plugin.reason), (0, 0, 0, 2)))
    return block


def summary(counted: dict[str, int]) -> str:
    """Counts by status as one line: `12 ok, 1 failed`."""
    return ", ".join(f"{count} {word}" for word, count in counted.items()) or "no plugins"
