"""Finds the line of every key in a TOML text that the standard library's parser has accepted.

Not a second parser: values are skipped, nothing is validated. A text with faults gives the lines up to the fault.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from moored.kernel.config import KeyPath

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LITERAL = re.compile(r"'([^'\n]*)'")
_BASIC = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_LONG_LITERAL = re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL)
_LONG_BASIC = re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL)
# a date and its time may stand apart: 1979-05-27 07:32:00
_SCALAR = re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:[^\s,\]}#]*)?|[^\s,\]}#]+")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)")
_CONTROLS = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


class _Stop(Exception):
    """The text is not TOML from here on."""


class Scan:
    """What was found: `lines` by key path, and in `repeated` the first key set twice with both of its lines."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.repeated: tuple[KeyPath, int, int] | None = None
        self._text = text
        self._at = 0
        self._starts = [match.end() for match in re.finditer("\n", text)]
        self._arrays: dict[KeyPath, int] = {}
        self._set: dict[KeyPath, int] = {}

    def run(self) -> None:
        """Walk the text from its beginning to its end or to the first fault."""
        prefix: KeyPath = ()
        try:
            while self._skip(_BLANK) < len(self._text):
                prefix = self._header() if self._text[self._at] == "[" else self._pair(prefix, prefix)
        except (_Stop, IndexError):
            return

    def _line(self) -> int:
        return bisect_right(self._starts, self._at) + 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _Stop
        self._at = match.end()
        return self._at

    def _record(self, path: KeyPath, line: int) -> None:
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _once(self, path: KeyPath, line: int) -> None:
        first = self._set.setdefault(path, line)
        if first != line and self.repeated is None:
            self.repeated = (path, first, line)

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`; gives the path that following keys stand under."""
        line = self._line()
        many = self._text.startswith("[[", self._at)
        self._at += 2 if many else 1
        parts = self._key()
        self._at += 2 if many else 1
        path = self._within(parts[:-1])
        path = (*path, parts[-1])
        self._record(path, line)
        if not many:
            if path in self._arrays:
                path = (*path, self._arrays[path])
            # a table may be opened by a header below it first; its own header is the better place
            if path not in self._set:
                self.lines[path] = line
            self._once(path, line)
            return path
        self._arrays[path] = self._arrays.get(path, -1) + 1
        path = (*path, self._arrays[path])
        self._record(path, line)
        return path

    def _within(self, parts: list[str]) -> KeyPath:
        """The path of a table, through the last element of every array of tables on the way."""
        path: KeyPath = ()
        for part in parts:
            path = (*path, part)
            if path in self._arrays:
                path = (*path, self._arrays[path])
        return path

    def _pair(self, base: KeyPath, after: KeyPath) -> KeyPath:
        """`key = value` under `base`; gives `after`."""
        line = self._line()
        path = (*base, *self._key())
        if self._text[self._at] != "=":
            raise _Stop
        self._at += 1
        self._skip(_SPACE)
        self._record(path, line)
        self._once(path, line)
        self._value(path)
        return after

    def _key(self) -> list[str]:
        """A dotted key and the blanks after it."""
        parts = []
        while True:
            self._skip(_SPACE)
            parts.append(self._key_part())
            self._skip(_SPACE)
            if self._text[self._at : self._at + 1] != ".":
                return parts
            self._at += 1

    def _key_part(self) -> str:
        for pattern in (_BARE, _LITERAL, _BASIC):
            if match := pattern.match(self._text, self._at):
                self._at = match.end()
                if pattern is _BARE:
                    return match[0]
                return _ESCAPE.sub(_unescape, match[1]) if pattern is _BASIC else match[1]
        raise _Stop

    def _value(self, path: KeyPath) -> None:
        text, at = self._text, self._at
        if text.startswith('"""', at):
            self._skip(_LONG_BASIC)
        elif text.startswith("'''", at):
            self._skip(_LONG_LITERAL)
        elif text[at] == '"':
            self._skip(_BASIC)
        elif text[at] == "'":
            self._skip(_LITERAL)
        elif text[at] == "[":
            self._array(path)
        elif text[at] == "{":
            self._inline(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self._text[self._at] == "]":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                index += 1
                continue
            self._record((*path, index), self._line())
            self._value((*path, index))

    def _inline(self, path: KeyPath) -> None:
        self._at += 1
        while True:
            self._skip(_BLANK)
            if self._text[self._at] == "}":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._pair(path, path)


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "uU":
        return chr(int(code[1:], 16))
    return _CONTROLS.get(code, code)


def scan(text: str) -> Scan:
    """Lines of a text whose line ends are LF."""
    found = Scan(text)
    found.run()
    return found
