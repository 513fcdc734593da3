"""Moments are read as Go reads them."""

from __future__ import annotations

from datetime import datetime

import pytest

from moored.kernel.rfc3339 import parse_ns


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T00:00:00.123456789123Z", 123_456_789),
        ("1970-01-01T00:00:00,25Z", 250_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T22:30:00-01:30", 0),
        ("2024-02-29T12:00:00Z", 1_709_208_000 * 10**9),
        ("9999-12-31T23:59:59Z", 253_402_300_799 * 10**9),
        ("0001-01-01T00:00:00+05:00", -62_135_596_800 * 10**9 - 5 * 3600 * 10**9),
        ("0000-06-01T00:00:00Z", -62_135_596_800 * 10**9),
    ],
)
def test_moments(text: str, nanoseconds: int) -> None:
    assert parse_ns(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01 00:00:00Z",
        "2026-01-01t00:00:00z",
        "2026-13-01T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+0100",
        "2026-01-01T00:00:00Z\n",
        "\u0662\u0660\u0662\u0666-01-01T00:00:00Z",
    ],
)
def test_other_texts_are_none(text: str) -> None:
    assert parse_ns(text) is None


def test_what_python_writes_is_read() -> None:
    moment = datetime.fromisoformat("2026-11-23T11:50:19.123456+02:00")
    assert parse_ns(moment.isoformat()) == round(moment.timestamp()) * 10**9 + 123_456_000
