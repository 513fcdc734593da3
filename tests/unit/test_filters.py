"""The filter language of moored.kernel.filters: grammar, error places, matching, limits. The texts are containerd's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moored.kernel import filters as f
from moored.kernel.errors import InvalidArgument
from moored.kernel.filters import MappingAdaptor, Selector, compile_filters, parse, quote

IMAGE = MappingAdaptor(
    {
        "name": "docker.io/library/alpine:3",
        "target": {"digest": "sha256:01", "mediatype": None},
        "labels": {"a.b": "c", "io.x/y-z": "v1", "empty": "", "é": "ü"},
        "annotations": {"k": "v"},
        "parent": "",
        "quoted": "'v'",
        "comma": "a,b",
        "slash": "/tasks/exit",
        "bar": "a|b",
        "line": "a\nb",
    }
)


def matches(*filters: str) -> bool:
    return compile_filters(filters).match(IMAGE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        " name",
        "\u3000\t\x85\xa0name",
        "parent",
        "target.digest==sha256:01",
        "target. digest==sha256:01",
        'target."digest" == "sha256:01"',
        "name==docker.io/library/alpine:3",
        "name!=x",
        "name~=alpine",
        "name~=^docker.io/,target.digest~=/^sha256:[0-9]+$/",
        "name~=|^docker[.]io/|",
        "labels.a.b==c",
        'labels."a.b"==c',
        'labels.a."b"==c',
        'labels."io.x/y-z"==v1',
        'labels."io.x/y-z"',
        'labels."é"==ü',
        "annotations.k==v, labels.a.b==c",
        "quoted=='v'",
        'comma=="a,b"',
        'slash=="/tasks/exit"',
        r"slash~=/^\/tasks\/exit$/",
        "slash~=|^/tasks/|",
        r"bar~=|a[\|]b|",
        r'line=="a\nb"',
        r'line=="\x61\u000a\142"',
        r'labels."\xc3\xa9"=="\U000000fc"',
        r'"\x6eame"',
        "parent!=x",
        "parent~=^$",
        "name.any.thing==docker.io/library/alpine:3",
        "labels.empty",
    ],
)
def test_these_match(text: str) -> None:
    assert matches(text)


@pytest.mark.parametrize(
    "text",
    [
        "nope",
        "target",
        "labels",
        "target.mediatype",
        "target.size",
        "name==alpine",
        "name!=docker.io/library/alpine:3",
        "name~=^alpine",
        "name~=(",
        "name~=a{1001}",
        r"name~=\C",
        r'name~="\xff"',
        r'labels."é"=="\xfc"',
        "labels.a.c",
        "labels.a.b==c,nope",
        "nope,labels.a.b==c",
        "labels.a.b==c,labels.a.b!=c",
    ],
)
def test_these_do_not_match(text: str) -> None:
    assert not matches(text)


def test_an_absent_field_differs_from_everything_and_searches_as_empty() -> None:
    assert not matches('nope==""')
    assert matches("nope!=x")
    assert not matches('nope!=""')
    assert matches("nope~=^$")
    assert not matches("nope~=/./")


def test_a_quoted_literal_escape_is_no_single_byte_expression() -> None:
    adaptor = MappingAdaptor({"a": r"\C"})
    assert compile_filters([r"a~=^\\C$"]).match(adaptor)
    assert compile_filters([r"a~=\Q\C\E"]).match(adaptor)


def test_strings_are_alternatives() -> None:
    assert matches("nope", "name")
    assert matches("name==x", "name==docker.io/library/alpine:3", "target.digest==y")
    assert matches("name==x", "name==y", "name~=z", "labels.a.b")
    assert not matches("name==x", "name==y", "nope")


@pytest.mark.parametrize("filters", [[], [""], ["", ""], ["name==x", ""]])
def test_no_filter_or_an_empty_one_matches_everything_unseen(filters: list[str]) -> None:
    compiled = compile_filters(filters)
    assert compiled.matches_all
    assert compiled.match(MappingAdaptor({}))


def test_a_filter_with_a_condition_does_not_match_everything() -> None:
    assert not compile_filters(["name"]).matches_all


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (" ", " ", "expected field or quoted"),
        ("-", " >|-|< ", "expected field or quoted"),
        ("a,", "a,", "expected field or quoted"),
        ("a.", "a.", "expected field or quoted"),
        ("a..b", "a. >|.|< b", "expected field or quoted"),
        (",a", " >|,|< a", "expected field or quoted"),
        ("'a'==b", " >|'|< a'==b", "expected field or quoted"),
        ("a-b", "a >|-|< b", 'expected an operator ("=="|"!="|"~=")'),
        ("a ", "a ", 'expected an operator ("=="|"!="|"~=")'),
        ("a ,b", "a  >|,|< b", 'expected an operator ("=="|"!="|"~=")'),
        ("a b", "a  >|b|< ", 'expected an operator ("=="|"!="|"~=")'),
        ('a "b"', 'a  >|"|< b"', 'expected an operator ("=="|"!="|"~=")'),
        (r'a "\400"', r'a  >|"|< \400"', 'expected an operator ("=="|"!="|"~=")'),
        ("a=b", "a >|=|< b", 'unsupported operator "="'),
        ("a ===b", "a  >|=|< ==b", 'unsupported operator "==="'),
        ("a==", "a==", "expected value or quoted"),
        ("a==,b", "a== >|,|< b", "expected value or quoted"),
        ("a== =b", "a==  >|=|< b", "expected value or quoted"),
        ("a==.b", "a== >|.|< b", "expected value or quoted"),
        ("a==b c", "a==b >| |< c", "unexpected input:  "),
        ("a==b ,c", "a==b >| |< ,c", "unexpected input:  "),
        ('a=="b"c', 'a=="b" >|c|< ', "unexpected input: c"),
        ("topic==/tasks/exit", "topic== >|/|< tasks/exit", "invalid quote encountered"),
        ("a==|b|", "a== >|||< b|", "invalid quote encountered"),
        ("/a/", " >|/|< a/", "invalid quote encountered"),
        ('a=="b', 'a== >|"|< b', "quoted literal not terminated"),
        ('a=="b\n"', 'a== >|"|< b\n"', "quoted literal not terminated"),
        ("a==/b", "a== >|/|< b", "quoted literal not terminated"),
        ('a "b', 'a  >|"|< b', "quoted literal not terminated"),
        (r'a=="\z"', r'a== >|"|< \z"', "illegal escape sequence"),
        ('a=="\\', 'a== >|"|< \\', "illegal escape sequence"),
        (r'a=="\/"', r'a== >|"|< \/"', "illegal escape sequence"),
        (r"a~=/\|/", r"a~= >|/|< \|/", "illegal escape sequence"),
        (r'a=="\x4"', r'a== >|"|< \x4"', "illegal numeric escape sequence"),
        (r'a=="\u00"', r'a== >|"|< \u00"', "illegal numeric escape sequence"),
        (r'a=="\18"', r'a== >|"|< \18"', "illegal numeric escape sequence"),
        (r'a=="\400"', r'a== >|"|< \400"', "unquoting failed: quote syntax error"),
        (r'a=="\U00110000"', r'a== >|"|< \U00110000"', "unquoting failed: quote syntax error"),
        (r"a==/\400/", r"a== >|/|< \400/", "invalid quote encountered"),
        ("a\0", "a >|\0|< ", "unexpected null"),
        ('a=="\0"', 'a== >|"|< \0"', "unexpected null"),
        ('a=="\\\0"', 'a== >|"|< \\\0"', "unexpected null"),
        ('a=="\\x\0"', 'a== >|"|< \\x\0"', "unexpected null"),
        ("a==\ufffd", "a== >|\ufffd|< ", "rune error"),
        ("a==b\0", "a==b >|\0|< ", "unexpected input: \ufffd"),
        ("a==b\ufffdc", "a==b >|\ufffd|< c", "unexpected input: \ufffd"),
        ("é", " >|é|< ", "expected field or quoted"),
        ("a==\x1c\x1d", "a==\x1c >|\x1d|< ", "unexpected input: \x1d"),
    ],
)
def test_a_bad_filter_says_where_and_what(text: str, place: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert caught.value.text == f"filters: parse error: [{place}]: {message}"


def test_one_bad_string_fails_all() -> None:
    with pytest.raises(InvalidArgument, match="parse error"):
        compile_filters(["", "a="])


def test_values_end_at_blanks_and_commas_only() -> None:
    assert parse("a==b.c=d\"e/f|,g~=h'") == (Selector(("a",), "==", 'b.c=d"e/f|'), Selector(("g",), "~=", "h'"))


def test_any_single_character_may_begin_a_value() -> None:
    assert parse("a==\x01b") == (Selector(("a",), "==", "\x01b"),)


def test_half_a_surrogate_pair_is_the_replacement_character() -> None:
    assert parse(r'a=="\ud800"') == (Selector(("a",), "==", "\ufffd"),)


def test_quote_writes_a_go_string() -> None:
    assert quote('a"\\\n\0\x7f é\u200b\U000e0001\ufffd') == r'"a\"\\\n\x00\x7f é\u200b\U000e0001\ufffd"'


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([""] * (f.MAX_FILTERS + 1), "1001 strings"),
        (["a" * (f.MAX_FILTER_BYTES + 1)], "65537 bytes"),
        (["é" * (f.MAX_FILTER_BYTES // 2) + "a"], "65537 bytes"),
        (["a" * f.MAX_FILTER_BYTES] * 5, "327680 bytes in all"),
        (["a~=b," * f.MAX_PATTERNS + "a~=b"], "257 regular expressions"),
        (["a~=" + "b" * (f.MAX_PATTERN_BYTES + 1)], "16385 bytes"),
    ],
)
def test_over_a_limit_is_an_error(filters: list[str], wanted: str) -> None:
    with pytest.raises(InvalidArgument, match=wanted):
        compile_filters(filters)


@pytest.mark.parametrize(
    "filters",
    [
        [""] * f.MAX_FILTERS,
        ["a" * f.MAX_FILTER_BYTES] * 4,
        ["a~=b," * (f.MAX_PATTERNS - 1) + "a~=b"],
        ["a~=" + "b" * f.MAX_PATTERN_BYTES],
    ],
)
def test_at_a_limit_is_no_error(filters: list[str]) -> None:
    compile_filters(filters)


def test_an_expression_cannot_take_exponential_time() -> None:
    adaptor = MappingAdaptor({"a": "a" * 100_000})
    assert not compile_filters(["a~=^(a+)+$(a|aa)+b"]).match(adaptor)


def test_an_expression_over_its_memory_matches_nothing() -> None:
    assert not compile_filters([r'a~="\\pL{200}"']).match(MappingAdaptor({"a": "a" * 1000}))


def test_the_expression_engine_is_loaded_by_expressions_only() -> None:
    program = (
        "import sys; from moored.kernel.filters import compile_filters as c;"
        "c(['a==b']); assert 're2' not in sys.modules; c(['a~=b']); assert 're2' in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
