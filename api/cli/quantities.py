"""Sizes, times and numbers as people write and read them: `512m`, `1.5GiB`, `90s`, `2 hours ago`, `cpu=1024:2048`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?b?)", re.IGNORECASE)
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SECOND_NS: Final = 1_000_000_000
_SPANS: Final = (
    ("second", 1, 60),
    ("minute", 60, 60),
    ("hour", 3600, 48),
    ("day", 86400, 14),
    ("week", 7 * 86400, 9),
    ("month", 30 * 86400, 24),
    ("year", 365 * 86400, 1 << 60),
)


def parse_size(text: str) -> int:
    """Bytes that `512`, `64k`, `1.5g` or `2GiB` stand for, all of them powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"size {text!r} must be a number with one of b, k, m, g, such as 512m")
    size = int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])
    if size >= 1 << 63:
        raise ValueError(f"size {text!r} is larger than any memory")
    return size


def size(count: int) -> str:
    """Bytes for people: `0B`, `812B`, `1.2MiB`, `34GiB`."""
    value, units = float(count), ["TiB", "GiB", "MiB", "KiB", "B"]
    while abs(value) >= 1000 and len(units) > 1:
        value /= 1024
        units.pop()
    unit = units[-1]
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{unit}"


def parse_duration(text: str) -> float:
    """Seconds that `90`, `1.5s`, `10m` or `1h30m` stand for. Raises ValueError."""
    try:
        plain = float(text)
    except ValueError:
        plain = -1.0
    if 0 <= plain < 1e12:
        return plain
    pieces = _DURATION.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise ValueError(f"time {text!r} must be a number with one of s, m, h, d, such as 90s or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in pieces)


def parse_moment(text: str, now: float) -> int:
    """Nanoseconds since 1970 that an RFC 3339 time, a Unix time, or a duration before now stand for. ValueError."""
    if re.fullmatch(r"[0-9]{9,}(\.[0-9]+)?", text):
        return int(float(text) * SECOND_NS)
    try:
        return int((now - parse_duration(text)) * SECOND_NS)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"time {text!r} must be like 2026-01-31T12:00:00Z, a Unix time, or a duration back from now such as 10m"
        ) from None
    return int((found if found.tzinfo else found.astimezone()).timestamp() * SECOND_NS)


def span(seconds: float) -> str:
    """A time for people, roughly: `4 seconds`, `About a minute`, `3 hours`, `2 weeks`."""
    whole = int(max(seconds, 0))
    if whole < 1:
        return "Less than a second"
    # A unit counts up to its limit; the last one has none.
    unit, length = next((unit, length) for unit, length, limit in _SPANS if whole // length < limit)
    count = whole // length
    if count == 1 and unit in ("minute", "hour"):
        return f"About {'an' if unit == 'hour' else 'a'} {unit}"
    return f"{count} {unit}{'' if count == 1 else 's'}"


def ago(moment: int, now: int) -> str:
    """A time in ns since 1970 as seen from now: `3 hours ago`; `-` for none."""
    return f"{span((now - moment) / SECOND_NS)} ago" if moment else "-"


def timestamp(moment: int | None) -> str:
    """A time in ns since 1970 as RFC 3339 with nanoseconds, in UTC; empty for none."""
    if not moment:
        return ""
    seconds, nanoseconds = divmod(moment, SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
