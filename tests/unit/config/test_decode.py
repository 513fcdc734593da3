"""Decoding a table into a config dataclass, and describing the dataclass."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from moored.kernel.config import Problem, decode, encode, fields_of, setting
from moored.kernel.duration import Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    url: str = setting(doc="where it is")
    skip_verify: bool = setting(False, doc="whether any certificate will do")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A section."""

    threshold: float = setting(0.02, ge=0, le=0.5, doc="share of time")
    count: int = setting(3, ge=1, doc="how many")
    delay: Duration = setting(Duration(0.1), ge=0, doc="a pause")
    root_path: Path | None = setting(None, doc="a folder")
    policy: Literal["shared", "isolated"] = setting("shared", doc="who sees what")
    level: str = setting("", choices=("", "info", "debug"), doc="how much")
    default: list[str] = setting(factory=list, doc="names")
    sizes: tuple[int, ...] = setting((), ge=1, doc="bytes each")
    hosts: dict[str, Host] = setting(factory=dict, doc="by name")
    main: Host = setting(factory=lambda: Host(url="x"), doc="the first")
    mixed: int | str = setting(0, doc="a number or a name")
    options: dict[str, Any] = setting(factory=dict, doc="handed on as they are")
    io_type: str = setting("", name="io-type", doc="odd name")


def problems(text: str, **kwargs: Any) -> list[Problem]:
    return decode(Config, tomllib.loads(text), **kwargs)[1]


def test_a_good_table_becomes_the_dataclass():
    text = """
    threshold = 0
    delay = "1m30s"
    root_path = "/x"
    policy = "isolated"
    default = ["a", "b"]
    sizes = [1, 2]
    mixed = "name"
    io-type = "streaming"
    options = {a = 1, b = {c = true}}
    [hosts.h]
    url = "http://h"
    """
    value, found = decode(Config, tomllib.loads(text))

    assert found == []
    assert value == Config(
        threshold=0.0,
        delay=Duration(90),
        root_path=Path("/x"),
        policy="isolated",
        default=["a", "b"],
        sizes=(1, 2),
        hosts={"h": Host(url="http://h")},
        mixed="name",
        options={"a": 1, "b": {"c": True}},
        io_type="streaming",
    )
    assert isinstance(value.threshold, float)


def test_an_empty_table_is_all_defaults():
    assert decode(Config, {}) == (Config(), [])


def test_every_problem_is_reported_at_once_with_its_path():
    text = """
    threshhold = 1
    count = "x"
    delay = "5 minutes"
    [hosts.h]
    skip_verify = 1
    """
    value, found = decode(Config, tomllib.loads(text), path=("plugins", "io.x.v1.y"))

    assert value is None
    assert [problem.key[2:] for problem in found] == [
        ("threshhold",),
        ("count",),
        ("delay",),
        ("hosts", "h", "skip_verify"),
        ("hosts", "h", "url"),
    ]
    assert all(problem.key[:2] == ("plugins", "io.x.v1.y") for problem in found)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("threshhold = 1", "unknown", "unknown key, did you mean 'threshold'?"),
        ("zzz = 1", "unknown", "unknown key"),
        ('count = "3"', "type", "'3' is a string, wanted an integer"),
        ("count = true", "type", "true is a boolean, wanted an integer"),
        ("count = 1.0", "type", "1.0 is a float, wanted an integer"),
        ("count = 0", "value", "'0' is out of range, wanted at least 1"),
        ("threshold = true", "type", "true is a boolean, wanted a number"),
        ("threshold = 1", "value", "'1.0' is out of range, wanted at most 0.5"),
        ("threshold = nan", "value", "nan is not a finite number"),
        ("delay = 5", "type", "5 is an integer, wanted a duration such as '10s'"),
        ('delay = "5"', "value", "missing unit in duration '5', wanted one of ns, us, ms, s, m, h"),
        ('delay = "-5s"', "value", "'-5s' is out of range, wanted at least 0s"),
        ("root_path = []", "type", "this is an array, wanted a path"),
        ('policy = "share"', "value", "'share' is not one of 'shared', 'isolated', did you mean 'shared'?"),
        ("policy = 1", "type", "1 is an integer, wanted one of 'shared', 'isolated'"),
        ('level = "inf"', "value", "'inf' is not one of 'info', 'debug', did you mean 'info'?"),
        ('default = "a"', "type", "'a' is a string, wanted a list of strings"),
        ("hosts = 1", "type", "1 is an integer, wanted a table of tables"),
        ("main = 1", "type", "1 is an integer, wanted a table"),
        ("main = {}", "missing", "missing, wanted a string"),
        ("mixed = 1.5", "type", "1.5 is a float, wanted an integer or a string"),
        ("count = 1979-05-27", "type", "1979-05-27 is a date or time, wanted an integer"),
    ],
)
def test_a_problem_says_what_is_there_and_what_was_wanted(text, kind, message):
    found = problems(text)

    assert [(problem.kind, problem.message) for problem in found] == [(kind, message)]


def test_an_element_of_a_list_is_named_by_its_position():
    (problem,) = problems('default = ["a", 2]')
    (bound,) = problems("sizes = [1, 0]")

    assert problem.key == ("default", 1)
    assert (bound.key, bound.kind) == (("sizes", 1), "value")


def test_without_strictness_unknown_keys_warn_and_the_value_is_there():
    value, found = decode(Config, {"zzz": 1, "hosts": {"h": {"url": "x", "yyy": 1}}}, strict=False)

    assert value is not None
    assert value.hosts["h"].url == "x"
    assert [(problem.level, problem.key) for problem in found] == [
        ("warning", ("zzz",)),
        ("warning", ("hosts", "h", "yyy")),
    ]


def test_what_the_dataclass_itself_refuses_is_a_problem():
    @dataclass(frozen=True)
    class Pair:
        low: int = setting(0)
        high: int = setting(1)

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low '{self.low}' is above high '{self.high}'")

    assert decode(Pair, {"low": 2}, path=("p",)) == (None, [Problem("error", ("p",), "low '2' is above high '1'")])


def test_encode_writes_what_decode_reads():
    value = Config(delay=Duration(90), root_path=Path("/x"), hosts={"h": Host(url="u")}, sizes=(4,))

    table = encode(value)

    assert table["delay"] == "1m30s"
    assert table["root_path"] == "/x"
    assert table["io-type"] == ""
    assert "root_path" not in encode(Config())
    assert decode(Config, table) == (value, [])


def test_fields_tell_name_type_default_and_doc():
    found = {field.name: field for field in fields_of(Config)}

    assert (found["delay"].type_text, found["delay"].default, found["delay"].doc) == ("duration", "100ms", "a pause")
    assert found["default"].type_text == "list of strings"
    assert found["policy"].type_text == "'shared' or 'isolated'"
    assert (found["root_path"].default, found["root_path"].required) == (None, False)
    assert (found["hosts"].nested, found["hosts"].keyed) == (Host, True)
    assert (found["main"].nested, found["main"].keyed) == (Host, False)
    assert fields_of(Host)[0].required
    assert "io-type" in found
