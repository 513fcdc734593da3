"""Properties of moored.kernel.filters: quoting round trips, any text is safe, matching agrees with a plain reading."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from moored.kernel.errors import InvalidArgument
from moored.kernel.filters import MappingAdaptor, Selector, compile_filters, parse, quote

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORD = st.from_regex(re.compile(r"[A-Za-z0-9_]{1,5}"), fullmatch=True)
BLANKS = st.sampled_from(["", " ", "\t\u3000"])
# Letters that mean something to the parser come often.
GARBAGE = st.text(st.one_of(st.sampled_from("ab.,=!~\"/|\\' \n\0\ufffdxuU018é"), st.characters()), max_size=30)

NAMES = st.sampled_from(["name", "id", "target", "labels", "x"])
VALUES = st.sampled_from(["", "a", "b", "ab", "a.b", "é", "a\nb"])
SELECTORS = st.builds(
    Selector,
    st.lists(st.one_of(NAMES, VALUES), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["", "==", "!=", "~="]),
    VALUES,
).map(lambda s: s if s.operator else Selector(s.path))
LABELS = st.dictionaries(st.sampled_from(["a", "b", "a.b", "", "ab.a"]), VALUES)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "name": VALUES,
        "id": VALUES,
        "target": st.dictionaries(st.sampled_from(["a", "name"]), VALUES),
        "labels": LABELS,
    },
)


def written(selectors: Sequence[Selector]) -> str:
    return ",".join(
        ".".join(map(quote, s.path)) + (s.operator + quote(s.value) if s.operator else "") for s in selectors
    )


def plainly(selector: Selector, obj: dict[str, object]) -> bool:
    """Read one condition by the contract, without the closures."""
    first, rest = selector.path[0], selector.path[1:]
    node = obj.get(first)
    if isinstance(node, dict):
        node = node.get(".".join(rest)) if first == "labels" else node.get(rest[0]) if rest else None
    value = node if isinstance(node, str) else None
    match selector.operator:
        case "==":
            return value == selector.value
        case "!=":
            return (value or "") != selector.value
        case "~=":
            return re.search(selector.value, value or "") is not None
        case _:
            return value is not None


@given(TEXT)
def test_a_quoted_value_is_read_as_it_was(text: str) -> None:
    assert parse(f"a=={quote(text)}") == (Selector(("a",), "==", text),)


@given(TEXT)
def test_a_quoted_field_is_read_as_it_was(text: str) -> None:
    assert parse(f"a.{quote(text)}") == (Selector(("a", text)),)


@given(st.binary(max_size=12))
def test_bytes_that_are_no_utf8_are_read_as_they_were(data: bytes) -> None:
    escapes = "".join(f"\\x{byte:02x}" for byte in data)
    (selector,) = parse(f'a=="{escapes}"')
    assert selector.value.encode("utf-8", "surrogateescape") == data
    assert parse(f"a=={quote(selector.value)}") == (selector,)


@given(WORD, BLANKS, BLANKS, BLANKS, st.sampled_from(["==", "!=", "~="]), WORD)
def test_blanks_before_tokens_do_not_matter(field: str, a: str, b: str, c: str, operator: str, value: str) -> None:
    assert parse(f"{a}{field}{b}{operator}{c}{value},{a}{field}") == (
        Selector((field,), operator, value),
        Selector((field,)),
    )


@given(st.lists(st.one_of(GARBAGE, st.sampled_from(["a==", "a~=", 'a=="']).flatmap(lambda p: GARBAGE.map(p.__add__)))))
def test_any_text_parses_or_is_refused(filters: list[str]) -> None:
    refusal, matched = "", False
    try:
        matched = compile_filters(filters).match(MappingAdaptor({"a": "b"}))
    except InvalidArgument as error:
        refusal = error.text
    assert matched in (True, False)
    assert not refusal or refusal.startswith("filters: parse error: [")


@given(
    WORD,
    st.sampled_from('"/|'),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"/|\\\n\0\ufffd')),
)
def test_between_quotes_all_but_escapes_and_line_ends_is_literal(field: str, mark: str, text: str) -> None:
    assert parse(f"{field}~={mark}{text}{mark}") == (Selector((field,), "~=", text),)


@given(st.lists(SELECTORS, min_size=1, max_size=4))
def test_selectors_can_be_written_and_parsed(selectors: list[Selector]) -> None:
    assert parse(written(selectors)) == tuple(selectors)


@given(st.lists(st.lists(SELECTORS, min_size=1, max_size=3), max_size=5), OBJECTS)
def test_matching_agrees_with_a_plain_reading(filters: list[list[Selector]], obj: dict[str, object]) -> None:
    compiled = compile_filters([written(selectors) for selectors in filters])
    expected = not filters or any(all(plainly(s, obj) for s in selectors) for selectors in filters)
    assert compiled.match(MappingAdaptor(obj)) == expected  # type: ignore[arg-type]
