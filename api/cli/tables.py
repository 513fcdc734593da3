"""Tables of text: fitted to a terminal by leaving out and cutting columns, in full and aligned anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from moored.api.cli.output import ELLIPSIS, printable

GAP: Final = 3
"""Blanks between columns."""
NARROWEST: Final = 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column; right: aligned so. least: cells it may be cut to, 0 for never. rank: the highest goes first."""

    title: str
    right: bool = False
    least: int = 0
    rank: int = 0


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, None if it is none; COLUMNS is heeded."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, NARROWEST)


def cells(text: str) -> int:
    """Columns that a text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def cut(text: str, width: int) -> str:
    """The text, or its beginning and an ellipsis, in at most so many columns."""
    if cells(text) <= width:
        return text
    mark = ELLIPSIS if _unicode() else "~"
    kept = ""
    for char in text:
        if cells(kept + char) > width - 1:
            break
        kept += char
    return kept.rstrip() + mark


def _unicode() -> bool:
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    return encoding in ("utf-8", "utf8")


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None, *, titles: bool = True) -> str:
    """Lines of a table, each ended; foreign text in it is made printable. width None: nothing is cut."""
    body = [[printable(" ".join(cell.splitlines())) for cell in row] for row in rows]
    wanted = [
        max([cells(column.title) if titles else 0, *(cells(row[at]) for row in body)])
        for at, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    widths = dict(enumerate(wanted))
    if width is not None:
        shown = _that_fit(columns, wanted, width)
        widths = _narrowed(columns, shown, wanted, width)
    lines = [[column.title for column in columns]] if titles else []
    return "".join(_line(columns, row, shown, widths, width) for row in (*lines, *body))


def _that_fit(columns: Sequence[Column], wanted: Sequence[int], width: int) -> list[int]:
    """Columns whose least widths fit beside each other."""
    shown = list(range(len(columns)))

    def least(at: int) -> int:
        return min(wanted[at], columns[at].least or wanted[at])

    while len(shown) > 1 and sum(map(least, shown)) + GAP * (len(shown) - 1) > width:
        droppable = max(shown, key=lambda at: (columns[at].rank, at))
        if not columns[droppable].rank:
            break
        shown.remove(droppable)
    return shown


def _narrowed(columns: Sequence[Column], shown: Sequence[int], wanted: Sequence[int], width: int) -> dict[int, int]:
    """Widths of what is shown: the widest column that may be cut gives way first."""
    widths = {at: wanted[at] for at in shown}
    over = sum(widths.values()) + GAP * (len(shown) - 1) - width
    while over > 0:
        soft = [at for at in shown if columns[at].least and widths[at] > columns[at].least]
        if not soft:
            break
        widest = max(soft, key=widths.__getitem__)
        others = [widths[at] for at in soft if at != widest and widths[at] < widths[widest]]
        target = max(columns[widest].least, max(others, default=0), widths[widest] - over)
        step = max(1, widths[widest] - target)
        widths[widest] -= step
        over -= step
    return widths


def _line(
    columns: Sequence[Column], row: Sequence[str], shown: Sequence[int], widths: dict[int, int], width: int | None
) -> str:
    parts = []
    for at in shown:
        text = row[at] if width is None else cut(row[at], widths[at])
        blanks = " " * (widths[at] - cells(text))
        parts.append(blanks + text if columns[at].right else text + blanks)
    return (" " * GAP).join(parts).rstrip() + "\n"


def colours(stream_is_terminal: bool, *, no_color: bool) -> bool:
    """Whether to colour: on a terminal that can, unless somebody said not to."""
    mute = no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
    return stream_is_terminal and not mute
