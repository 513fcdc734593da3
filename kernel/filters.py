"""The filter language of List, Metrics and Subscribe calls: parsed once, matched as closures.

    filter   = selector {"," selector}          all must hold; the strings of one call are alternatives
    selector = path [operator value]            without operator: the field is present
    operator = "==" | "!=" | "~="               "~=" is an RE2 search, not anchored
    path     = field {"." field}
    field    = /[A-Za-z0-9_]+/ | quoted
    value    = quoted | up to a comma or blank
    quoted   = '"' ... '"', and as the value of "~=" also /.../ and |...|; escapes as in Go strings

Blanks may stand before a field, an operator and a value, nowhere else. An absent field has the value "": it fails `==`,
passes `!=`, and `~=` searches the empty text. An expression that does not compile matches nothing. Errors are
InvalidArgument. Source: semantics 1.4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, Union

from moored.kernel.errors import InvalidArgument

MAX_FILTERS: Final = 1000
"""Strings in one call."""
MAX_FILTER_BYTES: Final = 64 << 10
"""Bytes of one string."""
MAX_TOTAL_BYTES: Final = 256 << 10
"""Bytes of all strings of one call: parsing holds the event loop."""
MAX_PATTERNS: Final = 256
"""`~=` selectors in one call."""
MAX_PATTERN_BYTES: Final = 16 << 10
"""Bytes of one expression."""
MAX_PATTERN_MEMORY: Final = 2 << 20
"""Bytes that RE2 may use for one expression; one that needs more does not compile."""

Path: TypeAlias = tuple[str, ...]
"""A field's path: `target.digest` is `("target", "digest")`."""

JOINED: Final = frozenset({"labels", "annotations", "extensions"})
"""Fields whose keys may hold dots: the rest of the path, joined with dots, is the key."""


class Adaptor(Protocol):
    """An object as filters see it."""

    def field(self, path: Path) -> tuple[str, bool]:
        """Return the value and whether the field is present; `("", False)` for an unknown or absent one."""


Fields: TypeAlias = Mapping[str, Union[str, "Fields", None]]
"""Nested fields by name; None is absent, an empty string is present."""


class MappingAdaptor:
    """Shows nested mappings: `{"id": "a", "runtime": {"name": "r"}, "labels": {"a.b": "c"}}`.

    What follows a text field in a path is ignored, as containerd does: `id.x` is `id`.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def field(self, path: Path) -> tuple[str, bool]:
        """See Adaptor."""
        at: str | Fields | None = self._fields
        for depth, name in enumerate(path):
            assert isinstance(at, Mapping)
            at = at.get(name)
            if isinstance(at, str):
                return at, True
            if at is None:
                return "", False
            if name in JOINED:
                value = at.get(".".join(path[depth + 1 :]))
                return (value, True) if isinstance(value, str) else ("", False)
        return "", False


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition; operator is `==`, `!=`, `~=` or, for presence, empty.

    Bytes that escapes made and that are no UTF-8 are kept as lone surrogates: they equal no text.
    """

    path: Path
    operator: str = ""
    value: str = ""


Test: TypeAlias = Callable[[Adaptor], bool]


class Filter:
    """A compiled set of filter strings; immutable, usable from any thread."""

    __slots__ = ("_test", "matches_all")

    def __init__(self, test: Test | None) -> None:
        self._test = test
        self.matches_all: Final = test is None
        """True if no object needs to be looked at."""

    def match(self, adaptor: Adaptor) -> bool:
        """Return whether any of the strings matches the object."""
        return self._test is None or self._test(adaptor)


def compile_filters(filters: Sequence[str]) -> Filter:
    """Compile the filters of one call; none at all, or an empty one among them, match everything.

    Raises InvalidArgument with containerd's text (its class suffix is the wire's) for a bad string or one over a limit.
    """
    _check_limits(filters)
    parsed = [parse(text) for text in filters]
    patterns = sum(selector.operator == "~=" for selectors in parsed for selector in selectors)
    if patterns > MAX_PATTERNS:
        raise InvalidArgument(f"filters: {patterns} regular expressions, at most {MAX_PATTERNS} wanted")
    if not parsed:
        return Filter(None)
    tests = _tests(parsed)
    return Filter(None if not all(parsed) else _any_of(tests))


def parse(text: str) -> tuple[Selector, ...]:
    """Parse one filter string; the empty one has no selectors. Raises InvalidArgument with the place."""
    return _Parser(text).selectors() if text else ()


def quote(text: str) -> str:
    """Return text as a quoted field or value, in the form of a Go string: `quote('a"b') == '"a\\"b"'`."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _check_limits(filters: Sequence[str]) -> None:
    if len(filters) > MAX_FILTERS:
        raise InvalidArgument(f"filters: {len(filters)} strings, at most {MAX_FILTERS} wanted")
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in filters]
    if max(sizes, default=0) > MAX_FILTER_BYTES:
        raise InvalidArgument(f"filters: a string of {max(sizes)} bytes, at most {MAX_FILTER_BYTES} wanted")
    if sum(sizes) > MAX_TOTAL_BYTES:
        raise InvalidArgument(f"filters: {sum(sizes)} bytes in all, at most {MAX_TOTAL_BYTES} wanted")


# --- matching ---------------------------------------------------------------------------------------------------------


def _tests(parsed: Sequence[tuple[Selector, ...]]) -> list[Test]:
    """Make one test of each filter, and one set look-up of all that are a single `==` on the same field."""
    wanted: dict[Path, set[str]] = {}
    tests: list[Test] = []
    for selectors in parsed:
        if len(selectors) == 1 and selectors[0].operator == "==":
            wanted.setdefault(selectors[0].path, set()).add(selectors[0].value)
        else:
            tests.append(_all_of([_test(selector) for selector in selectors]))
    return [_is_one_of(path, frozenset(values)) for path, values in wanted.items()] + tests


def _test(selector: Selector) -> Test:
    path, value = selector.path, selector.value
    match selector.operator:
        case "==":
            return _is_one_of(path, frozenset((value,)))
        case "!=":
            return lambda adaptor: adaptor.field(path)[0] != value
        case "~=":
            return _searches(path, value)
        case _:
            return lambda adaptor: adaptor.field(path)[1]


def _is_one_of(path: Path, values: frozenset[str]) -> Test:
    def test(adaptor: Adaptor) -> bool:
        value, present = adaptor.field(path)
        return present and value in values

    return test


# Of the two engines only RE2's own knows `\C`, a single byte; containerd's does not compile it.
_ANY_ESCAPE: Final = re.compile(r"\\Q.*?(?:\\E|\Z)|\\(.)", re.DOTALL)


def _searches(path: Path, pattern: str) -> Test:
    try:
        encoded = pattern.encode()
    except UnicodeEncodeError:
        return _never
    if len(encoded) > MAX_PATTERN_BYTES:
        size = len(encoded)
        raise InvalidArgument(f"filters: a regular expression of {size} bytes, at most {MAX_PATTERN_BYTES} wanted")
    if any(found[1] == "C" for found in _ANY_ESCAPE.finditer(pattern)):
        return _never
    import re2

    options = re2.Options()
    options.max_mem = MAX_PATTERN_MEMORY
    options.log_errors = False
    try:
        search = re2.compile(encoded, options).search
    except re2.error:
        return _never
    return lambda adaptor: search(adaptor.field(path)[0].encode("utf-8", "replace")) is not None


def _never(_: Adaptor) -> bool:
    return False


def _all_of(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(adaptor: Adaptor) -> bool:
        for part in tests:  # noqa: SIM110 - a generator costs more than the tests
            if not part(adaptor):
                return False
        return True

    return test


def _any_of(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(adaptor: Adaptor) -> bool:
        for part in tests:  # noqa: SIM110 - a generator costs more than the tests
            if part(adaptor):
                return True
        return False

    return test


# --- parsing ----------------------------------------------------------------------------------------------------------

# White space as Go's unicode package has it; str.isspace() knows four control characters more.
_BLANKS: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_BLANK_RUN: Final = re.compile(f"[{_BLANKS}]*")
_FIELD: Final = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR: Final = re.compile(r"[=!~]+")
_QUOTES: Final = '"/|'
_UNREADABLE: Final = {"\ufffd": "rune error", "\0": "unexpected null"}
# Inside of quotes, by quote: what needs no look, and the escapes.
_PLAIN: Final = {mark: re.compile(rf"[^{mark}\\\n\0\ufffd]+") for mark in _QUOTES}
_NUMBERS: Final = r"(?P<octal>[0-7]{3})|x(?P<byte>[0-9A-Fa-f]{2})|u(?P<short>[0-9A-Fa-f]{4})|U(?P<long>[0-9A-Fa-f]{8})"
_ESCAPE: Final = {mark: re.compile(rf"\\(?:(?P<mark>[abfnrtv\\{mark}])|{_NUMBERS})") for mark in _QUOTES}
_MARKS: Final = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_NAMES: Final = {char: f"\\{mark}" for mark, char in _MARKS.items()} | {"\\": "\\\\", '"': '\\"'}
_DIGITS: Final = {"x": 2, "u": 4, "U": 8}


def _escaped(char: str) -> str:
    code = ord(char)
    if char in _NAMES:
        return _NAMES[char]
    if char.isprintable() and char != "\ufffd":
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Parser:
    """One pass over one string; `_at` is the next character to read."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while char := self._peek():
            if char != ",":
                shown = "\ufffd" if char in _UNREADABLE else char
                raise self._error(self._at, f"unexpected input: {shown}")
            self._at += 1
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._peek() == ".":
            self._at += 1
            path.append(self._field())
        if self._peek() in ("", ","):
            return Selector(tuple(path))
        operator = self._operator()
        return Selector(tuple(path), operator, self._value(any_quote=operator == "~="))

    def _field(self) -> str:
        char = self._next()
        if char and char in _QUOTES:
            return self._quoted(any_quote=False)
        if found := _FIELD.match(self._text, self._at):
            self._at = found.end()
            return found.group()
        raise self._error(self._at, "expected field or quoted")

    def _operator(self) -> str:
        char = self._next()
        start = self._at
        if found := _OPERATOR.match(self._text, start):
            self._at = found.end()
            if found.group() in ("==", "!=", "~="):
                return found.group()
            raise self._error(start, f'unsupported operator "{found.group()}"')
        if char and char in _QUOTES:
            self._literal()  # a literal that is broken itself is the nearer error
        raise self._error(start, 'expected an operator ("=="|"!="|"~=")')

    def _value(self, *, any_quote: bool) -> str:
        char = self._next()
        start = self._at
        if not char or char in ",.=!~":
            raise self._error(start, "expected value or quoted")
        if char in _QUOTES:
            return self._quoted(any_quote=any_quote)
        self._at += 1
        while (char := self._peek()) and char.isprintable() and char not in " ,\ufffd":
            self._at += 1
        return self._text[start : self._at]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        """Skip blanks and return the next character, "" at the end."""
        blanks = _BLANK_RUN.match(self._text, self._at)
        assert blanks is not None
        self._at = blanks.end()
        char = self._peek()
        if char in _UNREADABLE:
            raise self._error(self._at, _UNREADABLE[char])
        return char

    def _quoted(self, *, any_quote: bool) -> str:
        start = self._at
        literal = self._literal()
        if self._text[start] != '"' and not any_quote:
            raise self._error(start, "invalid quote encountered")
        if literal is None:
            raise self._error(start, "unquoting failed: quote syntax error")
        return literal.decode("utf-8", "surrogateescape")

    def _literal(self) -> bytes | None:
        """Read a quoted text; None if an escape in it names no byte or character."""
        start = self._at
        mark = self._text[start]
        self._at += 1
        parts: list[bytes | None] = []
        while (char := self._peek()) != mark:
            if found := _PLAIN[mark].match(self._text, self._at):
                parts.append(found.group().encode("utf-8", "surrogatepass"))
            elif (found := _ESCAPE[mark].match(self._text, self._at)) is not None:
                parts.append(_unescape(found))
            else:
                raise self._error(start, self._fault(char))
            self._at = found.end()
        self._at += 1
        whole = [part for part in parts if part is not None]
        return b"".join(whole) if len(whole) == len(parts) else None

    def _fault(self, char: str) -> str:
        """Say why the quoted text cannot go on at `char`."""
        if char != "\\":
            return _UNREADABLE.get(char, "quoted literal not terminated")
        kind = self._text[self._at + 1 : self._at + 2]
        if kind in _UNREADABLE:
            return _UNREADABLE[kind]
        if kind not in _DIGITS and not _is_octal(kind):
            return "illegal escape sequence"
        first = self._at + (1 if _is_octal(kind) else 2)
        for digit in self._text[first : first + _DIGITS.get(kind, 3)]:
            if digit in _UNREADABLE:
                return _UNREADABLE[digit]
            if not (_is_octal(digit) if _is_octal(kind) else digit in "0123456789abcdefABCDEF"):
                break
        return "illegal numeric escape sequence"

    def _error(self, at: int, message: str) -> InvalidArgument:
        text = self._text
        place = f"{text[:at]} >|{text[at]}|< {text[at + 1 :]}" if at < len(text) else text
        return InvalidArgument(f"filters: parse error: [{place}]: {message}")


def _is_octal(char: str) -> bool:
    return "0" <= char <= "7"


def _unescape(escape: re.Match[str]) -> bytes | None:
    """Return the bytes of one escape, None if its number is too large."""
    if mark := escape["mark"]:
        return _MARKS.get(mark, mark).encode()
    if octets := escape["octal"]:
        return bytes((number,)) if (number := int(octets, 8)) < 0x100 else None
    if octets := escape["byte"]:
        return bytes((int(octets, 16),))
    point = int(escape["short"] or escape["long"], 16)
    if point > 0x10FFFF:
        return None
    # As in Go, half of a surrogate pair becomes the replacement character.
    return ("\ufffd" if 0xD800 <= point <= 0xDFFF else chr(point)).encode()
