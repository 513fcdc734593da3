"""The line scanner against the standard library's parser, on texts of every notation that TOML has."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from moored.config.origin import dotted, quoted
from moored.config.source import Document

NAMES = st.sampled_from(["a", "b-c", "d_1", "1", "e f", "g.h", "#", "[x]", "=", "é", 'q"q', "true", ""])
SCALARS = st.sampled_from(
    [
        "1",
        "-0.5e3",
        "true",
        "1979-05-27 07:32:00",
        "07:32:00",
        "'l # [x]'",
        '"a \\" # b = 1"',
        '"""\nz = 1\n[t]\n"" """',
        "'''\n''z = 1\n'''",
        '"""a"""""',
        "'''a'''''",
        "0x1f",
        "inf",
        '""',
        "''",
        '"""\\\n  x"""',
    ]
)
BLANKS = st.sampled_from(["", " ", "\t", "  "])
ENDS = st.sampled_from(["", " # c = 1", "\t#"])


def key_text(draw, name):
    bare = name and all(char.isascii() and (char.isalnum() or char in "-_") for char in name)
    ways = [quoted(name)] + ([name] if bare else []) + ([f"'{name}'"] if "'" not in name else [])
    return draw(st.sampled_from(ways))


@st.composite
def inline_values(draw, depth=0):
    kind = draw(st.sampled_from(["scalar", "scalar", "array", "table"])) if depth < 2 else "scalar"
    if kind == "array":
        items = draw(st.lists(inline_values(depth + 1), max_size=3))
        gap = draw(st.sampled_from(["", " ", "\n", " # ]\n "]))
        return f"[{gap}" + f",{gap}".join(items) + f"{gap}]"
    if kind == "table":
        names = draw(st.lists(NAMES, max_size=3, unique=True))
        pairs = [f"{key_text(draw, name)} = {draw(inline_values(depth + 1))}" for name in names]
        return "{ " + ", ".join(pairs) + " }"
    return draw(SCALARS)


@st.composite
def documents(draw):
    """Lines that are TOML, or nearly: what the parser refuses is thrown away by the tests."""
    lines = []
    for _ in range(draw(st.integers(0, 12))):
        names = draw(st.lists(NAMES, min_size=1, max_size=3))
        dot = draw(BLANKS) + "." + draw(BLANKS)
        key = dot.join(key_text(draw, name) for name in names)
        kind = draw(st.sampled_from(["pair", "pair", "pair", "table", "array", "blank"]))
        indent, end = draw(BLANKS), draw(ENDS)
        if kind == "pair":
            lines.append(f"{indent}{key}{draw(BLANKS)}={draw(BLANKS)}{draw(inline_values())}{end}")
        elif kind == "table":
            lines.append(f"{indent}[{key}]{end}")
        elif kind == "array":
            lines.append(f"{indent}[[{key}]]{end}")
        else:
            lines.append(f"{indent}{end}")
        try:
            tomllib.loads("\n".join(lines))
        except tomllib.TOMLDecodeError:
            lines.pop()
    return "\n".join(lines)


def leaves(value, path=()):
    """Every path to a value that is no table, into arrays too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from leaves(item, (*path, index))


def tables(value, path=()):
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            yield from tables(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from tables(item, (*path, index))


@settings(max_examples=150, deadline=None)
@given(documents())
def test_the_scanner_finds_exactly_the_keys_that_the_parser_finds(text):
    document = Document(Path("f"), text.encode())

    expected = {path for path in [*leaves(document.values), *tables(document.values)] if path}

    assert set(document.lines) == expected


@settings(max_examples=150, deadline=None)
@given(documents())
def test_the_line_of_a_key_holds_the_key(text):
    document = Document(Path("f"), text.encode())
    lines = document.text.split("\n")

    for path, number in document.lines.items():
        names = [part for part in path if isinstance(part, str)]
        shown = {names[-1], quoted(names[-1])} if isinstance(path[-1], str) else {""}
        assert any(way in lines[number - 1] for way in shown), dotted(path)


@settings(max_examples=100, deadline=None)
@given(documents(), st.integers(0, 400), st.sampled_from(["=", "[", "]", '"', "'", "\n", "{", ",", "x", "\\"]))
def test_the_scanner_survives_any_text(text, at, insert):
    from moored.config.scanner import scan

    broken = text[:at] + insert + text[at + 1 :]

    for path, number in scan(broken).lines.items():
        assert path
        assert 1 <= number <= broken.count("\n") + 1
