"""Durations read and written as Go does."""

import asyncio
import copy
import pickle

import pytest

from moored.kernel.duration import Duration

S = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("-0", 0),
        ("0s", 0),
        ("5s", 5 * S),
        ("+5s", 5 * S),
        ("-5s", -5 * S),
        ("5m0s", 300 * S),
        ("1h2m3.5s", 3723 * S + S // 2),
        ("-1.5h", -5400 * S),
        ("100ms", S // 10),
        (".5s", S // 2),
        ("5.s", 5 * S),
        ("10ns", 10),
        ("11us", 11_000),
        ("12µs", 12_000),
        ("12μs", 12_000),
        ("1h-", None),
        ("0.3333333333333333333h", 20 * 60 * S),
        ("0.9223372036854775807h", 3320413933267),
        ("9223372036854775807ns", (1 << 63) - 1),
        ("9223372036854775.807us", (1 << 63) - 1),
        ("-9223372036854775808ns", -(1 << 63)),
        ("0.000000000000000000000000001h", 0),
        ("39h9m14.425s", 140954_425_000_000),
    ],
)
def test_a_text_means_what_go_makes_of_it(text, ns):
    if ns is None:
        with pytest.raises(ValueError, match="duration"):
            Duration.parse(text)
    else:
        assert Duration.parse(text).ns == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "-",
        "s",
        ".",
        "-.",
        ".s",
        "+.s",
        "1d",
        "1 s",
        " 1s",
        "1s ",
        "--1s",
        "9223372036854775808ns",
        "3000000h",
        "9223372036854775.808us",
        "1e3s",
        "٣s",
        "99999999999999999999999999h",
    ],
)
def test_a_text_that_go_refuses_is_refused_by_name(text):
    with pytest.raises(ValueError, match="duration") as caught:
        Duration.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (245 * S, "4m5s"),
        (245_001_000_000, "4m5.001s"),
        (5 * 3600 * S + 6 * 60 * S + 7_001_000_000, "5h6m7.001s"),
        (480 * S + 1, "8m0.000000001s"),
        (300 * S, "5m0s"),
        (3600 * S, "1h0m0s"),
        (-S // 10, "-100ms"),
        ((1 << 63) - 1, "2562047h47m16.854775807s"),
        (-(1 << 63), "-2562047h47m16.854775808s"),
    ],
)
def test_a_duration_is_written_as_go_writes_it(ns, text):
    assert str(Duration.from_ns(ns)) == text
    assert Duration.parse(text).ns == ns


def test_a_duration_is_seconds_for_whoever_wants_a_float():
    async def wait():
        async with asyncio.timeout(Duration.parse("0s")):
            await asyncio.sleep(60)

    assert Duration.parse("1.5s") == 1.5
    assert Duration(1.5) == Duration.parse("1500ms")
    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def test_copies_keep_the_nanoseconds():
    exact = Duration.parse("2562047h47m16.854775807s")

    assert pickle.loads(pickle.dumps(exact)).ns == exact.ns
    assert copy.deepcopy(exact).ns == exact.ns


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e12])
def test_seconds_that_go_could_not_hold_are_refused(seconds):
    with pytest.raises(ValueError, match="duration"):
        Duration(seconds)
