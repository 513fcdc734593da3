"""Reads what `moorctl-log` has written: all files in order, from the end, from a moment on, and as it goes on.

FILE.2  FILE.1  FILE   oldest to youngest; a rotation renames, so a reader that follows keeps the file that it has
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from moored.kernel.rfc3339 import parse_ns

BLOCK: Final = 1 << 16
LOOK: Final = 0.1
"""Seconds between two looks at a file that is followed."""
SETTLED: Final = 3
"""Looks that find nothing new, after the end of the container, before the end of the log is believed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Some output of one moment; the last piece of a line ends with a newline. moment 0: not known."""

    data: bytes
    is_error: bool = False
    moment: int = 0


def files(path: Path) -> list[Path]:
    """The log's files that are there, the oldest first."""
    older = []
    number = 1
    while (rotated := path.with_name(f"{path.name}.{number}")).exists():
        older.append(rotated)
        number += 1
    return [*reversed(older), *([path] if path.exists() else [])]


def decoded(line: bytes, form: str) -> Entry | None:
    """Give the entry of one line of a file; None for a line that is none."""
    if form == "plain":
        return Entry(line)
    try:
        found = json.loads(line)
        return Entry(
            str(found["log"]).encode("utf-8", "replace"),
            found.get("stream") == "stderr",
            parse_ns(str(found.get("time", ""))) or 0,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def last_lines(path: Path, count: int, form: str) -> list[bytes]:
    """The last lines of output, of all files, as the lines of the files that hold them."""
    found: list[bytes] = []
    whole = 0
    for file in reversed(files(path)):
        for line in _backwards(file):
            # A line of output ends where an entry ends with a newline; the pieces before it are the same line.
            whole += form == "plain" or line.rstrip().find(b'\\n","stream"') >= 0 or not found
            if whole > count:
                return found[::-1]
            found.append(line)
    return found[::-1]


def _backwards(path: Path) -> Iterator[bytes]:
    """Lines of a file, the last first, each with its end."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        kept = b""
        while at > 0:
            step = min(BLOCK, at)
            at -= step
            file.seek(at)
            kept = file.read(step) + kept
            lines = _lines(kept)
            kept = lines.pop(0) if at else b""
            yield from reversed(lines)
            if not at:
                return


def _lines(data: bytes) -> list[bytes]:
    """Lines with their ends; unlike splitlines it takes only newlines for ends."""
    pieces = data.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


class Reader:
    """Reads a log from its beginning, or from its last lines, and then what is added."""

    def __init__(self, path: Path, form: str, tail: int | None) -> None:
        self._path = path
        self._form = form
        self._tail = tail
        self._file: BinaryIO | None = None
        self._kept = b""

    def entries(self) -> Iterator[Entry]:
        """Give all that there is now; the youngest file stays open, to go on from there."""
        begun = files(self._path)
        if self._tail is not None:
            lines = last_lines(self._path, self._tail, self._form) if self._tail else []
            self._open(begun[-1:])
            if self._file is not None:
                self._file.seek(0, os.SEEK_END)
            yield from filter(None, (decoded(line, self._form) for line in lines))
            return
        self._open(begun[:1])
        yield from self.more()

    def more(self) -> Iterator[Entry]:
        """Give what was added since."""
        if self._file is None:
            self._open(files(self._path)[:1])
        while self._file is not None:
            yield from self._rest()
            if not self._rotated():
                return
            # What was written between the last read and the rotation.
            yield from self._rest()
            self._open(self._successors())

    def _rest(self) -> Iterator[Entry]:
        assert self._file is not None
        while data := self._file.read(BLOCK):
            lines = _lines(self._kept + data)
            self._kept = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
            if self._kept and self._form == "plain":
                lines, self._kept = [*lines, self._kept], b""
            yield from filter(None, (decoded(line, self._form) for line in lines))

    def _rotated(self) -> bool:
        assert self._file is not None
        try:
            now = self._path.stat()
        except OSError:
            return False
        mine = os.fstat(self._file.fileno())
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)

    def _successors(self) -> list[Path]:
        """The file after the open one: where several rotations went by, the one that is next in age."""
        assert self._file is not None
        mine = os.fstat(self._file.fileno()).st_ino
        known = files(self._path)
        for index, path in enumerate(known[:-1]):
            if path.stat().st_ino == mine:
                return [known[index + 1]]
        return known[:1]

    def _open(self, paths: list[Path]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        for path in paths:
            self._file = path.open("rb")

    def close(self) -> None:
        """Let go of the file."""
        self._open([])


async def followed(reader: Reader, ended: asyncio.Event) -> AsyncGenerator[Entry]:
    """Give what is added until the container has ended and nothing more comes."""
    quiet = 0
    while quiet < SETTLED:
        was_over = ended.is_set()
        found = False
        for entry in reader.more():
            found = True
            yield entry
        quiet = quiet + 1 if was_over and not found else 0
        await asyncio.sleep(LOOK)
