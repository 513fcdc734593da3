"""Sizes and times as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.api.cli.quantities import (
    SECOND_NS,
    ago,
    parse_duration,
    parse_moment,
    parse_size,
    size,
    span,
    timestamp,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("512", 512), ("64k", 65536), ("64KiB", 65536), ("1.5g", 3 << 29), ("2 GB", 2 << 30), ("7b", 7)],
)
def test_a_size_counts_in_powers_of_1024(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1", "1x", "1e3", "99999999999t"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (1000, "0.98KiB"), (1536, "1.5KiB"), (3 << 30, "3GiB")]
)
def test_a_size_is_shown_with_three_digits(count, text):
    assert size(count) == text


@given(st.integers(0, 1 << 60))
def test_a_shown_size_is_near_the_true_one(count):
    assert parse_size(size(count)) == pytest.approx(count, rel=0.06)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("1h30m", 5400), ("100ms", 0.1), ("2d", 172800)]
)
def test_a_duration_is_a_sum_of_units(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "5x", "1h 30m", "nan", "inf"])
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match="time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [("10s", 990 * SECOND_NS), ("1700000000", 1_700_000_000 * SECOND_NS), ("1970-01-01T00:00:05Z", 5 * SECOND_NS)],
)
def test_a_moment_is_a_time_or_a_duration_back_from_now(text, moment):
    assert parse_moment(text, 1000.0) == moment


def test_a_moment_is_shown_as_rfc_3339_and_none_as_nothing():
    assert timestamp(5 * SECOND_NS + 7) == "1970-01-01T00:00:05.000000007Z"
    assert timestamp(None) == timestamp(0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (3600, "About an hour"),
        (2 * 86400, "2 days"),
        (20 * 86400, "2 weeks"),
        (800 * 86400, "2 years"),
    ],
)
def test_a_span_is_told_roughly(seconds, text):
    assert span(seconds) == text


def test_what_never_happened_is_a_dash():
    assert ago(0, 5) == "-"
