"""One TOML file: its values, and for every key the line that sets it.

Values come from the standard library's parser. Lines come from a scanner of our own that runs only when a line is asked
for, which a start without problems never does.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moored.kernel.config import KeyPath
from moored.kernel.errors import InvalidArgument

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 64

_POSITION = re.compile(r"\s*\((?:at line (\d+), column (\d+)|at end of document)\)$")


class BadToml(InvalidArgument):
    """A file that cannot be parsed: `FILE:LINE:COLUMN: reason`; line and column count from 1, 0 is unknown."""

    def __init__(self, path: Path, line: int, column: int, reason: str) -> None:
        place = f"{path}:{line}:{column}" if line else str(path)
        super().__init__(f"{place}: {reason}")
        self.path = path
        self.line = line
        self.column = column
        self.reason = reason


class Document:
    """A parsed file; never changes."""

    def __init__(self, path: Path, data: bytes, mtime_ns: int = 0) -> None:
        """Parse `data` as the content of `path`; raises BadToml."""
        self.path = path
        self.mtime_ns = mtime_ns
        self._data = data
        self.text = _decoded(path, data)
        self.values: Mapping[str, Any] = _parsed(path, self.text)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the bytes read, to tell later whether the file has changed."""
        import hashlib  # slow to load, and only asked for by the API

        return hashlib.sha256(self._data).hexdigest()

    @functools.cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """The line of every key, table header and element of an array of tables."""
        from moored.config.scanner import scan

        return scan(self.text).lines

    def line(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest table that is written in the file; 0 for the whole file."""
        while path:
            if (found := self.lines.get(path)) is not None:
                return found
            path = path[:-1]
        return 0


def read(path: Path) -> Document:
    """Read and parse a file of at most MAX_BYTES; raises OSError and BadToml."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
        mtime_ns = os.fstat(file.fileno()).st_mtime_ns
    if len(data) > MAX_BYTES:
        raise BadToml(path, 0, 0, f"longer than {MAX_BYTES} bytes")
    return Document(path, data, mtime_ns)


def _decoded(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        before = data[: fault.start]
        line = before.count(b"\n") + 1
        column = fault.start - (before.rfind(b"\n") + 1) + 1
        raise BadToml(path, line, column, f"byte 0x{data[fault.start]:02x} is not UTF-8") from None
    return text.replace("\r\n", "\n")


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise _bad_toml(path, text, str(fault)) from None
    except RecursionError:
        raise BadToml(path, 0, 0, "nested too deeply") from None
    if _deeper_than(values, MAX_DEPTH):
        raise BadToml(path, 0, 0, f"nested deeper than {MAX_DEPTH} levels")
    return values


def _bad_toml(path: Path, text: str, message: str) -> BadToml:
    """The parser's complaint with its place; a key set twice is named, with both of its lines."""
    match = _POSITION.search(message)
    reason = message[: match.start()] if match else message
    reason = reason[:1].lower() + reason[1:]
    if match is None or match[1] is None:
        line, column = text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1
    else:
        line, column = int(match[1]), int(match[2])
    if "overwrite" in reason or "twice" in reason or "redefine" in reason or "mutate" in reason:
        return _repeated(path, text, line, column, reason)
    return BadToml(path, line, column, reason)


def _repeated(path: Path, text: str, line: int, column: int, reason: str) -> BadToml:
    from moored.config.origin import dotted
    from moored.config.scanner import scan

    found = scan("\n".join(text.split("\n")[:line]) + "\n").repeated
    if found is None:
        return BadToml(path, line, column, reason)
    key, first, second = found
    return BadToml(path, second, 1, f"key {dotted(key)!r} is set twice, first in line {first}")


def _deeper_than(values: Any, limit: int) -> bool:
    level = [values]
    for _ in range(limit):
        level = [child for value in level for child in _children(value)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in children if isinstance(child, dict | list)]
